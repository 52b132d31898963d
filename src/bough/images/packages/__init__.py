"""Builds from unpacked packages of Debian: the agent disk and the boot kit.

The packages are downloaded and unpacked in namespaces of the build, without their dependencies. No program of
the packages' processor runs there, so a build for another processor needs no emulation.
"""

"""The program that applies the layers of a container image to a tree. It runs inside the namespaces of a
build, in a jail, with the host's Python and the standard library alone: no import from outside of this
package.
"""

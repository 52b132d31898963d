"""Copies of live Linux hosts: what is on such a host, what is copied, and how the copy becomes bootable.

hypervisor/captures.py runs a capture.
"""

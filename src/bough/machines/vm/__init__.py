"""A running machine: QEMU and its connections, start, stop, readiness, end."""

"""The disks of machines: creation, QEMU's block nodes, merging of backing files."""

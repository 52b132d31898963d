"""Reads ext2, ext3 and ext4 file systems from outside, without a mount.

    volume.py      the blocks of a file system; blocks that its journal replaces
    journal.py     which blocks the kernel would replace at a mount
    geometry.py    superblock and group descriptors
    inode.py       inodes, their extents or block lists, their inline data
    attributes.py  extended attributes
    files.py       directories, links and contents

The form is the kernel's Documentation/filesystems/ext4. Checksums are not verified: a reader of bough is
bounded and cannot be harmed by wrong content.
"""

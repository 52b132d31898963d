"""The differences between two systems: images, snapshots, machines.

bough reads the file systems from outside of the guests. Two disks of one image share the blocks that no guest
has written, so most files need no look at their content.

    hypervisor/differences.py    finds the disks of both sides, and the live values of running machines
    process.py                   starts the program in a jail, and checks its answer
    program.py                   the process: reads two disks and prints the differences

    disk.py                      a raw file or a chain of overlays, as one disk
    ext/                         reads ext2, ext3 and ext4, with the journal
    tree.py                      the file systems of one side, mounted on each other
    walk.py                      goes through both trees at once
    content.py                   compares the contents of two files
    packages.py, conffiles.py, units.py, accounts.py, sysctls.py   facts from files
    configuration.py, secrets.py                     changed configuration files, as unified diffs
    totals.py                    changed files and disk use by directory

The modules that the program imports use no other part of bough: the process runs in a jail with few files.
"""

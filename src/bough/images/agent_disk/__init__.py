"""The agent disk: bough's agent with its own Python, for guests that have none that fits.

A read-only squashfs of one processor architecture, made from Debian's packages. A machine whose image starts
the agent from the disk has it attached; the guest mounts it at /.bough. The guest needs nothing but a kernel:
every program of the disk is static, or starts through the disk's own loader.

    start            starts the agent; the guest's starter (guest/starter.sh) runs it
    init             becomes bough's init; the initrd of the boot kit (images/oci/boot_kit) runs it
    boot/            empty: the place for the boot partition of a container image's disk
    bin/             busybox (static), python3, sshfs, sftp-server, tar
    bin/run          starts one of these programs through the loader: run python3 -I -S ...
    tools/           links to busybox: what the agent uses and a guest may lack
    lib/ld.so        the loader; lib/*.so* the libraries
    lib/pythonX.Y/   the part of Python's library that the agent uses, compiled
    lib/bough/       the agent's modules, compiled
    version          what the disk was made from

recipe.py says what goes in, build.py makes a disk, store.py keeps disks, inside/ runs in the namespaces of
the build.
"""

"""A QEMU that stands still, kept as data, and processes that go on from it.

A QEMU that emulates translates its guest's code while it runs it, into memory of its own, and what it has
translated is lost with it: each fork of a snapshot would translate the same again, half a second of a
processor and 50 MiB for each. A process that goes on from a *frozen* one has all of that from the start,
shares it with the others until it is changed, and has no start of QEMU to wait for either.

    trace      another process stopped, looked at, made to call the kernel (ptrace)
    freeze     what there is to know of one, and its memory in a sealed file
    program    what the loader does to become it, with files, sockets and ids of another machine
    thaw.c     the loader: carries that out, without a library; thaw_x86_64.py is it, built
    devices    the state of devices, edited so that QEMU keeps its translations when it takes it up
    words      where QEMU keeps two words of each of its vCPUs
    likeness   which machines' processes are alike

Who is frozen has been rehearsed, and put back to the moment of its snapshot: see machines/rehearsal.py. It is
of no use to another boot of the host, or to another build of QEMU, and is never kept on a disk.
"""

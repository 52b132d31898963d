"""Process images: a QEMU process captured as data, from which other processes continue.

Under emulation QEMU translates its guest's code into its own memory. Without a process image each fork of a
snapshot translates the same code again: 0.5 s of processor time and 50 MiB each. A process that continues
from
an image has the translated code from the start, shares it copy-on-write, and skips QEMU's start.

    trace      stop another process, inspect it, make it call the kernel (ptrace)
    freeze     capture a process: its facts, and its memory in a sealed file
    program    the steps of the loader, with files, sockets and ids of another machine
    thaw.c     the loader: carries out the steps without any library; thaw_x86_64.py is its build
    devices    edits the device state so that QEMU keeps its translated code when it loads the state
    words      finds the place of two words of each vCPU in QEMU's memory
    likeness   which machines may share an image

Each captured process was pre-warmed and rewound to its snapshot (machines/rehearsal.py). An image is valid
for
one boot of the host and one build of QEMU, and is never stored on disk.
"""

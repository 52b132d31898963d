"""Process images: a QEMU process captured as data and continued by other processes.

Under emulation QEMU translates the guest's code into QEMU's memory. Without a process image each fork of a
snapshot translates the same code again: 0.5 s of processor time and 50 MiB each. A process continued from an
image has the translated code from the start, shares the code copy-on-write, and skips QEMU's start.

    image            the seam: fitting machines, and the start of QEMU from an image
    rewind           rewinds a pre-warmed fork to its snapshot
    capture_fork     rewinds and captures a fork
    capture          captures a process: its facts, and its memory in a sealed file
    captured         the captured process as data
    trace            stops and inspects another process, and makes the process call the kernel (ptrace)
    device_state     edits the device state so that QEMU keeps translated code while loading the state
    vcpu_words       finds the place of two words of each vCPU in QEMU's memory
    identifiers      the identifiers of a machine in an image; the machines sharing an image
    loader.c         carries out the loader's program without any library; loader_x86_64.py is the build
    loader_program   renders that program, with files, sockets and identifiers of another machine

An image is valid for one boot of the host and one build of QEMU, and is never stored on disk.
"""

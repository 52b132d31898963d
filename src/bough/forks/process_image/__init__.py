"""Process images: a QEMU process captured as data, from which other processes continue.

Under emulation QEMU translates its guest's code into its own memory. Without a process image each fork of a
snapshot translates the same code again: 0.5 s of processor time and 50 MiB each. A process that continues
from an image has the translated code from the start, shares it copy-on-write, and skips QEMU's start.

    image            the seam: which machines fit an image, and how their QEMU starts from it
    rewind           rewinds a pre-warmed fork to its snapshot
    capture_fork     rewinds and captures a fork
    capture          captures a process: its facts, and its memory in a sealed file
    captured         the captured process as data
    trace            stops another process, inspects it, makes it call the kernel (ptrace)
    device_state     edits the device state so that QEMU keeps its translated code when it loads the state
    vcpu_words       finds the place of two words of each vCPU in QEMU's memory
    identifiers      the identifiers of a machine in an image; which machines may share an image
    loader.c         carries out the loader's program without any library; loader_x86_64.py is its build
    loader_program   renders that program, with files, sockets and identifiers of another machine

An image is valid for one boot of the host and one build of QEMU, and is never stored on disk.
"""

"""Work-arounds for defects of QEMU and its firmware. Each file names the versions with the defect."""

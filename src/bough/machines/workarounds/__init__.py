"""Work-arounds for defects of QEMU and of firmware. Each file names the versions with the defect."""

"""Prepare a home for the tests, inside the outer machine: python -m tests.kvm.prepare

Probes the host, imports the small guest's image, and keeps a snapshot of the booted small guest.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import bough
from bough.images.store import ImageStore
from bough.paths import Home
from tests.kvm.patience import BOOT_S, connect
from tests.kvm.small_guest import SmallGuest

SMALL = "small"
BOOTED = "small-booted"
MEMORY = "256MiB"
FILES = Path("/opt/small")
IMAGE = "debian:12"


def small_files(place: Path) -> SmallGuest:
    return SmallGuest(place / "vmlinuz", place / "initrd.img", place / "small.raw")


def import_small(hv: bough.Hypervisor, files: SmallGuest) -> None:
    hv.import_image(files.disk, name=SMALL, format="raw", agent=True)


def boot_small(hv: bough.Hypervisor) -> bough.Snapshot:
    """Boot the small guest on KVM and keep a snapshot of it."""
    machine = hv.create(SMALL, name="small-first", vcpus=1, memory=MEMORY, accelerator="kvm")
    try:
        machine.start(timeout=BOOT_S)
        return machine.snapshot(BOOTED)
    finally:
        machine.delete(force=True)


def main() -> None:
    home = Home.at(Path(os.environ["BOUGH_HOME"]))
    home.create()
    (digest,) = (path.name for path in home.images.iterdir() if (path / "image.json").exists())
    ImageStore(home).label(digest, IMAGE)
    hv = connect()
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:7.1f} s  {text}\n")
        sys.stdout.flush()

    for accelerator in hv.doctor()["accelerators"]:
        say(f"{accelerator['name']}: {accelerator['detail']}")
    import_small(hv, small_files(FILES))
    say("imported the small guest")
    boot_small(hv)
    say("booted the small guest, and took its snapshot")
    hv.shutdown()


if __name__ == "__main__":
    main()

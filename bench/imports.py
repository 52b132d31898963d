"""Import of a disk image, against the conversion program."""

from __future__ import annotations

import tempfile
from pathlib import Path

import bough
from bench.harness import Bench, run_quietly
from bench.machine import IMAGE, run_bough
from bough.paths import Home

ABOUT = "a compressed qcow2 of debian:12 imported, against qemu-img convert"


def run(bench: Bench) -> None:
    image = bough.connect().build_image(IMAGE)
    disk = Home.from_environment().image(image.digest).disk
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        packed, target = Path(place) / "debian.qcow2", Path(place) / "out.raw"
        run_quietly("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", disk, packed)
        bench.in_turns(
            "import an image",
            ours=lambda: run_bough("image", "import", packed, "--name", "bench-import"),
            peer=lambda: run_quietly(
                "sh",
                "-c",
                'qemu-img convert -f qcow2 -O raw "$0" "$1" && sync "$1" && sha256sum "$0"',
                packed,
                target,
            ),
            what=("bough image import: checked, converted in a jail, digest of both", "qemu-img, sha256sum"),
            rounds=3,
        )
        run_bough("image", "delete", "bench-import")

"""Building an image from packages."""

from __future__ import annotations

from bench.harness import RESULTS, Bench
from bench.machine import IMAGE, run_bough
from bench.peer import build_stock_image

ABOUT = "debian:12 from packages, against plain mmdebstrap and mke2fs"


def run(bench: Bench) -> None:
    bench.in_turns(
        "build an image",
        ours=lambda: run_bough("image", "build", IMAGE, "--rebuild"),
        peer=lambda: build_stock_image(RESULTS / "built"),
        what=("bough image build --rebuild", "mmdebstrap, mke2fs -d"),
        rounds=2,
    )

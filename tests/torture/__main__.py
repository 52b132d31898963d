"""Kill processes at random moments for a given time: python -m tests.torture --seconds 600 --seed 1"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bough
from bough.errors import BoughError
from bough.paths import Home
from tests.torture.moments import Torture
from tests.torture.operations import IMAGE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--moments", type=int, default=10**9, help="end after so many")
    parser.add_argument("--only", default=None, help="some kinds of operations: snapshot,fork")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    root = Path(tempfile.mkdtemp(prefix="bough-torture-", dir="/var/tmp"))
    root.chmod(0o711)
    home = Home.at(root / "home")
    home.create()
    cache = os.environ.get("BOUGH_TEST_CACHE")
    if cache:
        things = [f"{cache}/images", f"{cache}/labels.json"]
        subprocess.run(["cp", "--archive", "--sparse=always", *things, home.root], check=True)
        (home.root / "labels.json").chmod(0o600)  # a cache of tests is readable for others
    print(f"seed {seed}, home {home.root}", flush=True)
    torture = Torture(
        home, seed, say=(lambda _: None) if options.quiet else lambda text: print(text, flush=True)
    )
    try:
        client = bough.connect(home.root)
        client.build_image(IMAGE)
        for image in client.images():  # of a cache: comparing an image with its digest takes time
            if IMAGE not in image.labels:
                client.delete_image(image.digest)
        torture.prepare()
        end = time.monotonic() + options.seconds
        while time.monotonic() < end and torture.report.moments.total() < options.moments:
            torture.moment(options.only)
        torture.finish()
    finally:
        clean(home, root, keep=bool(torture.report.losses))
    print(torture.report)
    return int(bool(torture.report.losses))


def clean(home: Home, root: Path, *, keep: bool) -> None:
    client = bough.connect(home.root)
    for machine in client.machines():
        try:
            machine.stop(force=True) if keep else machine.delete(force=True)
        except BoughError as error:
            print(f"{machine.name} could not be ended: {error.message}", file=sys.stderr)
    if not keep:
        for snapshot in client.snapshots():
            snapshot.delete()
    client.shutdown()
    if not keep:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

"""Run one target under atheris. `python -m tests.fuzz` starts this program with its arguments."""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-not-found]  # not in the dev extra: there is none for every Python

with atheris.instrument_imports(
    include=[
        "bough.guest",
        "bough.networks",
        "bough.client.copying.archive",
        "bough.client.copying.unpack",
        "bough.cli.output",
    ]
):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()

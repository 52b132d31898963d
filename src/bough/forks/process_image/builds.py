"""Builds of QEMU tested with process images, and the results of self-tests on other builds.

A process image depends on how a build of QEMU lays out its memory. An untested build may differ. So bough
tries out the first image on such a build before a user gets a fork.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bough.errors import HostLacks
from bough.storage import write_json

#: Versions as printed by `qemu-system-x86_64 --version`. bough's tests passed with these builds.
TESTED = frozenset({"7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"})

#: A failed self-test is repeated after this time: the host may have been at fault.
_AGAIN_AFTER_S = 86400.0
_MOST_RESULTS = 16
_QUESTION_MOST_S = 30.0


@dataclass(frozen=True)
class Build:
    """A QEMU program.

    Attributes:
        version: "7.2.22 (Debian 1:7.2+dfsg-7)".
        digest: SHA-256 of the program's file.
    """

    version: str
    digest: str


def read_build(program: str) -> Build:
    """Return the build of a QEMU program. Blocks. Raises HostLacks: it cannot be read."""
    try:
        info = Path(program).stat()
        return _read_build(program, info.st_ino, info.st_size, info.st_mtime_ns)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostLacks(f"{program} cannot be read: {error}") from error


@lru_cache(maxsize=8)
def _read_build(program: str, *_: int) -> Build:
    command = [program, "--version"]
    done = subprocess.run(command, capture_output=True, timeout=_QUESTION_MOST_S, check=True)
    first = done.stdout.decode(errors="replace").partition("\n")[0].strip()
    version = re.sub(r"^QEMU emulator version ", "", first)[:200]
    with Path(program).open("rb") as file:
        return Build(version, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class SelfTest:
    """The result of a self-test.

    Attributes:
        failure: None if the test passed.
        time_s: seconds since the epoch.
    """

    build: Build
    failure: str | None
    time_s: float

    @property
    def is_valid(self) -> bool:
        return self.failure is None or 0 <= time.time() - self.time_s < _AGAIN_AFTER_S


class SelfTests:
    """Self-test results of a home. An unreadable file counts as no result."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def find(self, build: Build) -> SelfTest | None:
        """Return the valid result for a build, if any."""
        return next((test for test in self._read() if test.build == build and test.is_valid), None)

    def add(self, test: SelfTest) -> None:
        """Keep a result. Raises OSError, NoSpace."""
        others = [known for known in self._read() if known.build != test.build]
        write_json(self._file, [asdict(known) for known in [*others, test][-_MOST_RESULTS:]])

    def _read(self) -> list[SelfTest]:
        try:
            entries = json.loads(self._file.read_bytes())
            return [_parse(entry) for entry in entries]
        except (OSError, ValueError, TypeError, KeyError):
            return []


def _parse(entry: dict[str, Any]) -> SelfTest:
    build = Build(str(entry["build"]["version"]), str(entry["build"]["digest"]))
    failure = entry["failure"]
    return SelfTest(build, None if failure is None else str(failure), float(entry["time_s"]))

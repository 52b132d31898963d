"""The host's QEMU: where it is, its version, its machine types and CPU models."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bough.errors import HostLacks
from bough.qemu.arch import architecture
from bough.qemu.packages import render_fix

OLDEST = (7, 2)
_VERSION_S = 120.0


@dataclass(frozen=True)
class QemuBinary:
    path: str
    version: tuple[int, ...]
    arch: str


@dataclass(frozen=True)
class QemuFacts:
    """Versioned machine types and CPU models of the binary."""

    machine_types: tuple[str, ...]
    cpu_models: tuple[str, ...]


def find_qemu(arch: str) -> QemuBinary:
    """Return the QEMU for machines of `arch`.

    Raises:
        HostLacks: QEMU is missing or too old; `hint` has the command that installs it.
    """
    row = architecture(arch)
    path = next((found for name in row.qemu if (found := shutil.which(name))), None)
    if path is None:
        raise HostLacks(f"QEMU for {arch} ({row.qemu[0]}) is not installed", hint=render_fix(f"qemu-{arch}"))
    info = Path(path).stat()
    version = _read_version(path, info.st_mtime_ns)
    if version < OLDEST:
        text, oldest = ".".join(map(str, version)), ".".join(map(str, OLDEST))
        raise HostLacks(
            f"QEMU at {path} is {text}; {oldest} is the oldest that works", hint=render_fix(f"qemu-{arch}")
        )
    return QemuBinary(path, version, arch)


@lru_cache(maxsize=8)
def _read_version(path: str, _: int) -> tuple[int, ...]:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=_VERSION_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostLacks(f"{path} does not start: {error}", hint="install QEMU again") from error
    return parse_version(done.stdout.decode(errors="replace"))


def parse_version(text: str) -> tuple[int, ...]:
    """Return the version in "QEMU emulator version 7.2.22 (Debian ...)". Raises HostLacks for other text."""
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        raise HostLacks(f"not a QEMU: it printed {text.strip()[:80]!r}", hint="bough doctor")
    return tuple(int(number) for number in match.groups(default="0"))

"""Emulation of foreign processors during the build of an image.

bough finds out by running the smallest possible program at the place of the build. A 64-bit PC runs programs
of a 32-bit PC without an emulator. The host may have a registered emulator. Otherwise bough registers an
emulator in the build's namespaces, without root.
"""

from __future__ import annotations

import asyncio
import shutil
import struct
from pathlib import Path

from bough.errors import HostLacks
from bough.images.namespace import start_inside
from bough.images.platforms import PLATFORMS, Platform
from bough.qemu.packages import render_fix
from bough.qemu.subprocesses import end_subprocess

_NAME = "bough"
_TIMEOUT_S = 20.0
_LOAD_ADDRESS = 0x400000


async def find_rule(arch: str, work: Path) -> str:
    """Return the binfmt_misc rule that a build in `work` needs; "" if programs of `arch` run without a rule.

    Raises:
        HostLacks: programs of `arch` cannot run. `hint` has the command that helps.
    """
    _write_program(PLATFORMS[arch], work / "foreign")
    if await _runs(work, "") is None:
        return ""
    emulator = next(filter(None, map(shutil.which, (f"qemu-{arch}-static", f"qemu-{arch}"))), None)
    if emulator is None:
        raise HostLacks(
            f"programs of {arch} do not run on this host, and qemu-{arch}-static is not installed",
            hint=render_fix("qemu-user"),
        )
    rule = render_rule(PLATFORMS[arch], emulator)
    why = await _runs(work, rule)
    if why is not None:
        raise HostLacks(
            f"programs of {arch} do not run on this host: {emulator} could not be registered for the build"
            f" ({why or 'the kernel is older than 6.7, or allows no user namespaces'})",
            hint=f"register it for the whole host: {render_fix('binfmt')}",
        )
    return rule


async def _runs(work: Path, rule: str) -> str | None:
    """Run the test program. Return None on success, otherwise the last line of the output."""
    process = await start_inside(work, ["chroot", "foreign", "/program"], {}, binfmt=rule)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            assert process.stdout is not None
            said = await process.stdout.read()
            status = await process.wait()
    except TimeoutError:
        return "the test program did not end in time"
    finally:
        await end_subprocess(process)
    return None if status == 0 else said.decode(errors="replace").strip().rpartition("\n")[2][-300:]


def _write_program(platform: Platform, root: Path) -> None:
    """Write the program into an otherwise empty root: an emulator that needs shared libraries then fails."""
    root.mkdir(exist_ok=True)
    program = root / "program"
    program.write_bytes(render_program(platform))
    for path in (root, program):
        path.chmod(0o755)


def render_program(platform: Platform) -> bytes:
    """Return an ELF program (elf(5)) that exits with status 0: one segment with headers and code."""
    wide = platform.bits == 64
    header_bytes, segment_header_bytes = (64, 56) if wide else (52, 32)
    code_offset = header_bytes + segment_header_bytes
    size = code_offset + len(platform.exit_code)
    entry = _LOAD_ADDRESS + code_offset
    # From e_type ET_EXEC to e_shstrndx. The segment: p_type PT_LOAD, readable and executable.
    header = struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
        *(2, platform.machine, 1, entry, header_bytes, 0, 0, header_bytes, segment_header_bytes, 1),
        *(0, 0, 0),
    )
    if wide:
        segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x10000)
    else:
        segment = struct.pack("<IIIIIIII", 1, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 5, 0x1000)
    return _identification(platform) + header + segment + platform.exit_code


def _identification(platform: Platform) -> bytes:
    return b"\x7fELF" + bytes([2 if platform.bits == 64 else 1, 1, 1]) + bytes(9)


def render_rule(platform: Platform, emulator: str) -> str:
    """Return a binfmt_misc rule for the platform's ELF programs of any ABI, executable or shared.

    Flag F opens the emulator at registration, so its path need not exist in the programs' root. Flag P keeps
    argv[0].
    """
    magic = _identification(platform) + struct.pack("<HH", 2, platform.machine)
    mask = b"\xff" * 7 + b"\0" + b"\xff" * 8 + b"\xfe\xff\xff\xff"
    return f":{_NAME}:M::{_escape(magic)}:{_escape(mask)}:{emulator}:PF"


def _escape(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)

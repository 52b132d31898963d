"""Boot files of the throw-away guest: a Debian's kernel, modules, a busybox, a small program."""

from __future__ import annotations

import asyncio
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

from bough.errors import HostLacks
from bough.images.confined import Confinement, find_program, run_confined
from bough.images.linux_disk.cpio import DIRECTORY, FILE, PROGRAM, render_archive
from bough.images.linux_disk.debugfs import Debugfs, open_debugfs
from bough.images.linux_disk.initrd import module_name
from bough.images.linux_disk.kernels import MODULES, by_version
from bough.images.linux_disk.magic import Kind
from bough.images.linux_disk.tree import Tree, TreeUnreadable, resolve
from bough.images.linux_disk.volumes import read_volumes
from bough.progress import Report
from bough.units import MIB

#: Processors of hosts that can start the guest.
ARCHITECTURES = ("x86_64", "aarch64")
_INSIDE = Path(__file__).parent / "inside"
_WANTED = ("virtio_pci", "virtio_blk", "virtio_console", "squashfs", "xfs", "btrfs", "f2fs")
_MOST_KERNEL = 128 * MIB
_MOST_MODULE = 32 * MIB
_MOST_BUSYBOX = 8 * MIB


@dataclass(frozen=True)
class GuestParts:
    """Files of the host for a guest.

    Attributes:
        qemu: QEMU for this host's processor.
        debian: the disk of a Debian image, made by bough for this host's processor.
        agent_disk: the agent disk for this host's processor: it has a Python and a busybox.
    """

    qemu: str
    arch: str
    debian: Path
    agent_disk: Path


class PartsOf(Protocol):
    """Provides the parts, when a disk needs a guest. May take minutes: a missing part is built."""

    async def __call__(self, report: Report) -> GuestParts:
        """Return the parts. Raises BoughError: they cannot be had."""
        ...


@dataclass(frozen=True)
class Boot:
    """A kernel and an initrd, in files."""

    kernel: Path
    initrd: Path


async def write_boot(parts: GuestParts, confinement: Confinement, work: Path) -> Boot:
    """Write kernel and initrd of the guest to `work`.

    Raises:
        TreeUnreadable: the Debian image lacks a part. HostLacks: a program is missing.
    """
    kernel, initrd = work / "kernel", work / "initrd"
    with parts.debian.open("rb") as stream:
        volumes = [volume for volume in read_volumes(stream) if volume.kind == Kind.EXT]
    if not volumes:
        raise TreeUnreadable("the Debian image has no ext4")
    async with open_debugfs(parts.debian, volumes[-1].offset_bytes, confinement) as tree:
        version = await _find_version(tree)
        await _copy(tree, f"/boot/vmlinuz-{version}", kernel)
        modules = await _read_modules(tree, f"{MODULES[0]}/{version}")
    busybox = await _read_busybox(parts.agent_disk, confinement)
    content = await asyncio.to_thread(_render_initrd, busybox, modules)
    await asyncio.to_thread(initrd.write_bytes, content)
    return Boot(kernel, initrd)


async def _find_version(tree: Tree) -> str:
    listed = await tree.names([MODULES[0]])
    versions = sorted(listed.get(MODULES[0], []), key=by_version)
    if not versions:
        raise TreeUnreadable("the Debian image has no kernel")
    return versions[-1]


async def _copy(tree: Tree, path: str, target: Path) -> None:
    with target.open("wb") as stream:
        await tree.copy(path, stream, _MOST_KERNEL)
    if not target.stat().st_size:
        raise TreeUnreadable(f"the Debian image has no {path}")


async def _read_modules(tree: Debugfs, directory: str) -> list[tuple[str, bytes]]:
    """Return file name and content of the modules that the guest needs, in the order of their use."""
    path = f"{directory}/modules.dep"
    text = (await tree.read([path], 16 * MIB)).get(path, b"").decode()
    found = await resolve(tree, [f"{directory}/{name}" for name in order_modules(text, _WANTED)])
    modules = []
    for place, entry in found.values():
        if entry.size_bytes > _MOST_MODULE:
            raise TreeUnreadable("a module of the Debian image is too large")
        buffer = BytesIO()
        await tree.copy(place, buffer, entry.size_bytes)
        data = buffer.getvalue()
        name = f"{module_name(place)}.ko"
        modules.append((name, lzma.decompress(data) if data.startswith(b"\xfd7zXZ\0") else data))
    return modules


def order_modules(dependencies: str, wanted: Sequence[str]) -> list[str]:
    """Return the files of the wanted modules, each after the modules that it needs.

    Args:
        dependencies: modules.dep(5). Its lists are complete, the nearest module first.
    """
    files: dict[str, list[str]] = {}
    for line in dependencies.splitlines():
        path, _, needed = line.partition(":")
        files[module_name(path) or path] = [*reversed(needed.split()), path]
    ordered = [path for name in wanted for path in files.get(name, [])]
    return list(dict.fromkeys(ordered))


async def _read_busybox(agent_disk: Path, confinement: Confinement) -> bytes:
    heard = bytearray()

    async def take(data: bytes) -> None:
        heard.extend(data)
        if len(heard) > _MOST_BUSYBOX:
            raise TreeUnreadable("the busybox of the agent disk is too large")

    argv = [find_program("unsquashfs"), "-cat", str(agent_disk), "bin/busybox"]
    done = await run_confined(confinement, argv, read_only=(agent_disk,), on_output=take)
    if done.status != 0 or not heard.startswith(b"\x7fELF"):
        raise HostLacks("the agent disk cannot be read by unsquashfs", hint="sudo apt install squashfs-tools")
    return bytes(heard)


def _render_initrd(busybox: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    files = [
        ("bin", DIRECTORY, b""),
        ("modules", DIRECTORY, b""),
        ("bin/busybox", PROGRAM, busybox),
        ("init", PROGRAM, (_INSIDE / "init").read_bytes()),
        ("reader.py", FILE, (_INSIDE / "reader.py").read_bytes()),
        ("modules/order", FILE, "".join(f"{name}\n" for name, _ in modules).encode()),
        *((f"modules/{name}", FILE, content) for name, content in modules),
    ]
    return render_archive(files)

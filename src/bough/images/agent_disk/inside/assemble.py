"""Choose the files of the agent disk from unpacked packages.

    python3 assemble.py ROOT NATIVE AGENT DISK

Runs in the namespaces of the build, with the Python of the packages in NATIVE, which are for this host's
processor. ROOT has the packages of the disk's processor; no program of ROOT is started. AGENT has the
agent's modules as a package, and two lists of words: `modules` and `tools`.
"""

from __future__ import annotations

import os
import py_compile
import shutil
import struct
import sys
from collections.abc import Iterator
from modulefinder import ModuleFinder
from pathlib import Path
from typing import BinaryIO

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
#: Places of programs and libraries in an unpacked package, below the root.
BINARIES = ("bin", "usr/bin", "usr/lib/openssh")
LIBRARIES = ("lib", "lib64", "usr/lib", "usr/lib64")
PROGRAMS = {"python3": VERSION, "sshfs": "sshfs", "sftp-server": "sftp-server", "tar": "tar"}
#: Modules that Python loads at its start, or by a computed name.
EARLY = (
    *("_collections_abc", "_sitebuiltins", "_weakrefset", "abc", "codecs", "genericpath", "importlib", "io"),
    *("os", "posixpath", "stat", "zipimport", "_ctypes", "encodings", "encodings.aliases"),
    *("encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.utf_8"),
)
#: Modules that others import for uses which the agent does not have. Some need large libraries.
LEFT_OUT = (
    *("_bz2", "_decimal", "_hashlib", "_lzma", "_pydecimal", "_ssl", "_strptime", "argparse", "asyncio"),
    *("bz2", "calendar", "concurrent", "ctypes", "decimal", "distutils", "doctest", "email", "gettext"),
    *("http", "importlib.metadata", "importlib.readers", "importlib.resources", "inspect", "logging"),
    *("lzma", "multiprocessing", "optparse", "pdb", "pydoc", "readline", "ssl", "statistics", "test"),
    *("tracemalloc", "unittest", "urllib.error", "urllib.request", "urllib.response", "xml", "zipfile"),
)
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NEEDED, DT_STRTAB = 1, 5


def main() -> None:
    root, native, agent, disk = map(Path, sys.argv[1:5])
    # "boot" is a place to mount: the boot partition of an image that was made from a container image.
    for name in ("bin", "boot", "lib", "tools"):
        (disk / name).mkdir(parents=True)
    place(find(root, "busybox", BINARIES), disk / "bin/busybox", 0o755)
    for tool in (agent / "tools").read_text().split():
        (disk / "tools" / tool).symlink_to("../bin/busybox")
    for name, packaged in PROGRAMS.items():
        place(find(root, packaged, BINARIES), disk / "bin" / name, 0o755)
    extensions = copy_modules(root, native, agent, disk / "lib")
    programs = [disk / "bin" / name for name in PROGRAMS]
    place(find(root, loader_of(programs[0]), LIBRARIES), disk / "lib/ld.so", 0o755)
    for name in closure(root, [*programs, *extensions]):
        place(find(root, name, LIBRARIES), disk / "lib" / name, 0o644)


def find(root: Path, name: str, places: tuple[str, ...]) -> Path:
    """Return the file of that name in one of the directories, or in a directory below."""
    for directory in places:
        # A link with an absolute target would lead to a file of this host.
        found = sorted(path for path in (root / directory).rglob(name) if is_below(root, path))
        if found:
            return found[0]
    sys.exit(f"the packages have no {name}")


def is_below(root: Path, path: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(root.resolve())


def place(source: Path, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


# -- Python's modules -------------------------------------------------------------------------------


def copy_modules(root: Path, native: Path, agent: Path, target: Path) -> list[Path]:
    """Copy the modules that the agent uses, compiled. Return the extension modules."""
    library = native / "usr/lib" / VERSION
    path = [str(agent), str(library), str(library / "lib-dynload")]
    finder = ModuleFinder(path, excludes=LEFT_OUT)
    wanted = [*EARLY, *(agent / "modules").read_text().split()]
    wanted += sorted(f"bough.guest.{path.stem}" for path in (agent / "bough/guest").glob("*.py"))
    for name in wanted:
        finder.import_hook(name)
    extensions = []
    for name, module in sorted(finder.modules.items()):
        source: str | None = getattr(module, "__file__", None)
        if source is None:  # built in
            continue
        if source.endswith(".py"):
            compile_module(Path(source), agent, library, target)
            continue
        packaged = find(root, f"{name}.*.so", (f"usr/lib/{VERSION}/lib-dynload",))
        extensions.append(target / VERSION / "lib-dynload" / packaged.name)
        place(packaged, extensions[-1], 0o644)
    return extensions


def compile_module(source: Path, agent: Path, library: Path, target: Path) -> None:
    """Write a compiled module, without its source. Its times and paths are those of no build."""
    is_agents = source.is_relative_to(agent)
    inner = source.relative_to(agent) if is_agents else Path(VERSION) / source.relative_to(library)
    compiled = target / inner.with_suffix(".pyc")
    compiled.parent.mkdir(parents=True, exist_ok=True)
    py_compile.compile(
        str(source),
        str(compiled),
        dfile=f"/.bough/lib/{inner}",
        doraise=True,
        optimize=2,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


# -- ELF (elf(5)) -------------------------------------------------------------------------------------


class Elf:
    """The parts of a little-endian ELF file that name other files."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            head = stream.read(64)
            if head[:4] != b"\x7fELF" or head[5] != 1:
                sys.exit(f"{path} is not a program of a known kind")
            self._wide = head[4] == 2
            self._segments = list(self._read_segments(stream, head))
            self.interpreter = next((self._text(stream, at) for kind, at, _, _ in self._of(PT_INTERP)), None)
            self.needed = self._read_needed(stream)

    def _of(self, kind: int) -> list[tuple[int, int, int, int]]:
        return [segment for segment in self._segments if segment[0] == kind]

    def _read_segments(self, stream: BinaryIO, head: bytes) -> Iterator[tuple[int, int, int, int]]:
        """Yield kind, offset, address and size in the file."""
        (offset,) = struct.unpack_from("<Q" if self._wide else "<I", head, 32 if self._wide else 28)
        size, count = struct.unpack_from("<HH", head, 54 if self._wide else 42)
        for number in range(count):
            stream.seek(offset + number * size)
            if self._wide:
                kind, _, at, address, _, length = struct.unpack("<IIQQQQ", stream.read(40))
            else:
                kind, at, address, _, length = struct.unpack("<IIIII", stream.read(20))
            yield kind, at, address, length

    def _read_needed(self, stream: BinaryIO) -> list[str]:
        entries: list[tuple[int, int]] = []
        form = struct.Struct("<qQ" if self._wide else "<iI")
        for _, at, _, length in self._of(PT_DYNAMIC):
            stream.seek(at)
            entries += form.iter_unpack(stream.read(length // form.size * form.size))
        table = next((value for tag, value in entries if tag == DT_STRTAB), None)
        if table is None:
            return []
        base = next(at + table - address for _, at, address, length in self._of(PT_LOAD)
                    if address <= table < address + length)  # fmt: skip
        return [self._text(stream, base + value) for tag, value in entries if tag == DT_NEEDED]

    def _text(self, stream: BinaryIO, at: int) -> str:
        stream.seek(at)
        return stream.read(256).partition(b"\0")[0].decode()


def loader_of(program: Path) -> str:
    interpreter = Elf(program).interpreter
    if interpreter is None:
        sys.exit(f"{program} names no loader")
    return os.path.basename(interpreter)  # noqa: PTH119


def closure(root: Path, files: list[Path]) -> list[str]:
    """Return the names of all libraries that the files need, directly or through other libraries."""
    found: set[str] = set()
    waiting = list(files)
    while waiting:
        for name in Elf(waiting.pop()).needed:
            if name not in found and not name.startswith("ld-linux"):
                found.add(name)
                waiting.append(find(root, name, LIBRARIES))
    return sorted(found)


main()

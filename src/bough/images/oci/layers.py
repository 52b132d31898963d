"""Apply the layers of a container image to a tree, in namespaces of a build and in a jail.

The program in inside/ does the work. The program is root of a user namespace with subordinate ids, as a
build is, so the tree's owners are those of the image. (Under a root service it is root with the few
capabilities that a tree needs.) It sees the system's programs, read-only, and the tree, and has no network.
The blobs are open descriptors that it inherits: subordinate ids may not be able to open files of this user.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.errors import BadImage, BuildFailed, HostLacks, NoSpace
from bough.images.bootstrap import check_programs, check_subordinate_ids
from bough.images.namespace import start_inside
from bough.images.oci.inside import failure as kinds
from bough.images.recipes import SCRIPTS
from bough.progress import Progress, Report
from bough.qemu.jail import render_system
from bough.qemu.subprocesses import end_subprocess
from bough.storage import NO_SPACE_HINT
from bough.tasks import finish
from bough.units import GIB, MIB, format_size

#: Directory of the tree below a work directory.
TREE = "root"
_INSIDE = Path(__file__).parent / "inside"
_PROGRAMS = {"mmdebstrap": "mmdebstrap", "bwrap": "bubblewrap", "python3": "python3"}
_PYTHON = "/usr/bin/python3"
#: What a tree of any owner needs: no device nodes, no mounts.
_CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETFCAP")
#: Space that stays free on the host.
_RESERVED_BYTES = 256 * MIB
#: enter.sh and the shell use the descriptors below 10.
_FIRST_DESCRIPTOR = 64
_OUTPUT_LINES = 20


@dataclass(frozen=True)
class LayerBlob:
    """A layer, as the image's manifest and configuration describe it.

    Attributes:
        path: of the blob.
        digest: of the blob: "sha256:...".
        diff_id: digest of the uncompressed archive.
    """

    path: Path
    digest: str
    size_bytes: int
    diff_id: str


@dataclass(frozen=True)
class UnpackLimits:
    """Bounds of all layers together.

    Attributes:
        most_bytes: of the uncompressed archives.
    """

    most_bytes: int = 128 * GIB
    most_entries: int = 4_000_000
    most_layers: int = 256


@dataclass(frozen=True)
class UnpackedTree:
    """The tree of an image.

    Attributes:
        path: of the tree. Its files belong to subordinate ids: enter a user namespace to read all of them.
        entries, content_bytes: of all layers, so at least those of the tree; each file in whole blocks.
        notes: what differs from the image: sentences for the user.
    """

    path: Path
    entries: int
    content_bytes: int
    notes: tuple[str, ...]


async def apply_layers(
    work: Path,
    layers: Sequence[LayerBlob],
    *,
    image: str,
    report: Report,
    limits: UnpackLimits | None = None,
) -> UnpackedTree:
    """Apply `layers`, the lowest first, to a new tree `work`/root.

    After an error or a cancellation a part of the tree is left: remove `work` by `remove_build`.

    Args:
        work: a directory of the caller alone, of mode 0711 below a directory that subordinate ids may cross.
        image: name of the image, for errors.

    Raises:
        BadImage: a layer is damaged, hostile, or too large. Details: layer (from 1), digest, entry.
        NoSpace
        HostLacks: a program or subordinate ids are missing.
    """
    limits = limits or UnpackLimits()
    check_programs(_PROGRAMS, "container images")
    check_subordinate_ids()
    if len(layers) > limits.most_layers:
        raise BadImage(f"{image} has {len(layers)} layers; at most {limits.most_layers} are supported")
    unpacking = _Unpacking(work, layers, image, limits, report)
    return await unpacking.run()


class _Unpacking:
    """One run of the program."""

    def __init__(
        self, work: Path, layers: Sequence[LayerBlob], image: str, limits: UnpackLimits, report: Report
    ) -> None:
        self._work = work
        self._layers = layers
        self._image = image
        self._report = report
        free = _free_bytes(work) - _RESERVED_BYTES
        self._bound_by_space = free < limits.most_bytes
        self._most_bytes = max(0, min(free, limits.most_bytes))
        self._most_entries = limits.most_entries
        self._other: deque[str] = deque(maxlen=_OUTPUT_LINES)

    async def run(self) -> UnpackedTree:
        with _opened(self._layers) as descriptors:
            await finish(asyncio.to_thread(self._prepare, descriptors))
            process = await start_inside(self._work, render_program(), {}, pass_fds=descriptors)
        try:
            end = await self._follow(process)
            status = await process.wait()
        except BaseException:
            await end_subprocess(process)
            raise
        if "done" in end and status == 0:
            return self._result(end["done"])
        raise self._failure(end.get("failure"), status)

    def _prepare(self, descriptors: Sequence[int]) -> None:
        """Put enter.sh, the program and its request into `work`."""
        shutil.copyfile(SCRIPTS / "enter.sh", self._work / "enter.sh")
        package = self._work / "program"
        for name in ("bough", "bough/images", "bough/images/oci"):
            (package / name).mkdir(parents=True, exist_ok=True)
            (package / name / "__init__.py").write_text("")
        inside = package / "bough/images/oci/inside"
        inside.mkdir()
        for path in _INSIDE.glob("*.py"):
            shutil.copyfile(path, inside / path.name)
        (package / "request.json").write_text(json.dumps(self._request(descriptors)))
        for path in (self._work / "enter.sh", package, *package.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        # For our files, subordinate ids are "others". No other user can enter incoming/<random name>.
        self._work.chmod(0o777)

    def _request(self, descriptors: Sequence[int]) -> dict[str, Any]:
        return {
            "most_bytes": self._most_bytes,
            "most_entries": self._most_entries,
            "layers": [
                {
                    "descriptor": descriptor,
                    "digest": layer.digest,
                    "size_bytes": layer.size_bytes,
                    "diff_id": layer.diff_id,
                }
                for layer, descriptor in zip(self._layers, descriptors, strict=True)
            ],
        }

    async def _follow(self, process: asyncio.subprocess.Process) -> Mapping[str, Any]:
        """Read the program's reports until its end. Return the last one that is no progress."""
        assert process.stdout is not None
        end: Mapping[str, Any] = {}
        async for line in process.stdout:
            said = _parse(line)
            if said is None:
                self._other.append(line.decode(errors="replace").rstrip()[:500])
            elif "read" in said:
                self._report_progress(said["read"])
            else:
                end = said
        return end

    def _report_progress(self, read: Mapping[str, int]) -> None:
        total = sum(layer.size_bytes for layer in self._layers)
        self._report(
            Progress(
                f"unpacking layer {read['layer']} of {len(self._layers)}",
                fraction=min(1.0, read["bytes"] / total) if total else None,
                detail=format_size(read["bytes"]),
            )
        )

    def _result(self, done: Mapping[str, Any]) -> UnpackedTree:
        return UnpackedTree(
            self._work / TREE, int(done["entries"]), int(done["content_bytes"]), tuple(done["notes"])
        )

    def _failure(self, told: Mapping[str, Any] | None, status: int) -> Exception:
        if told is None:
            output = "\n".join(self._other)
            if "No space left on device" in output:
                return self._no_space()
            return BuildFailed(
                f"the layers of {self._image} could not be unpacked (status {status})",
                hint="bough doctor shows whether a program is missing",
                image=self._image,
                step="unpacking layers",
                output=output[-4000:],
            )
        kind, sentence = told["kind"], told["sentence"]
        if kind == kinds.NO_SPACE or (kind == kinds.TOO_MUCH and self._bound_by_space and not told["entry"]):
            return self._no_space()
        if kind == kinds.HOST_LACKS:
            return HostLacks(
                f"this host lacks {sentence}, which the layers of {self._image} need",
                hint=f"sudo apt install {sentence} (on other distributions: bough doctor)",
            )
        number = int(told["layer"])
        entry = f", entry '{told['entry']}'" if told["entry"] else ""
        return BadImage(
            f"{self._image} cannot be unpacked: layer {number} of {len(self._layers)}{entry}: {sentence}",
            hint=_HINTS.get(kind),
            layer=number,
            digest=self._layers[number - 1].digest if 0 < number <= len(self._layers) else None,
            entry=told["entry"] or None,
        )

    def _no_space(self) -> NoSpace:
        return NoSpace(
            f"no space left for the layers of {self._image} below {self._work.parent}",
            hint=NO_SPACE_HINT,
            path=str(self._work.parent),
        )


_HINTS = {
    kinds.NO_SUCH_ID: "give this user more ids in /etc/subuid and /etc/subgid, or use an image whose owners "
    "are below 65536",
}


def render_program() -> list[str]:
    """Return the command of the program, for the work directory at /mnt."""
    jail = [
        *("bwrap", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *render_system(),
        *("--dev", "/dev", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
        *("--ro-bind", "/mnt/program", "/program", "--bind", f"/mnt/{TREE}", "/tree"),
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/program"),
        *("--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LC_ALL", "C.UTF-8"),
        *("--cap-drop", "ALL", *(word for name in _CAPABILITIES for word in ("--cap-add", name))),
        *("--", _PYTHON, "-X", "utf8", "-s", "-S", "-E", "-B", "-m", "bough.images.oci.inside.unpack"),
        *("/program/request.json", "/tree"),
    ]
    return ["sh", "-c", f'mkdir -m 0755 {TREE} && exec "$@"', "sh", *jail]


@contextlib.contextmanager
def _opened(layers: Sequence[LayerBlob]) -> Iterator[list[int]]:
    """Open the blobs, with numbers that the shell does not use."""
    descriptors: list[int] = []
    try:
        for layer in layers:
            descriptor = os.open(layer.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                descriptors.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_DESCRIPTOR))
            finally:
                os.close(descriptor)
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _free_bytes(where: Path) -> int:
    info = os.statvfs(where)
    return info.f_bavail * info.f_frsize


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None

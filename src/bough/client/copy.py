"""Files and trees into a guest and out of it, as `cp -r` would between two places of one host.

A file goes to the destination's name, or into it where it is a directory. A directory becomes the
destination where there is none, and goes into it where there is one; SOURCE/. stands for what is in it. A
destination that ends in / must be a directory. A link that is named as the source is followed; those in a
tree stay links. Modes, times, links, hard links and holes are kept; owners become the one who writes (root
in a guest). A single file is written beside its destination and renamed: it is there whole or not at all.

Through the guest's own `tar`, as a stream: nothing is kept in memory or in a temporary archive.
"""

from __future__ import annotations

import os
import stat
import tarfile
import threading
import time
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

from bough.client.pack import Packer
from bough.client.unpack import Unpacker, parse_name, to_bytes
from bough.errors import (
    BoughError,
    GuestRefused,
    InvalidInput,
    NoSpace,
    NotFound,
    ProtocolError,
)
from bough.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from bough.client.machine import Machine
    from bough.client.process import Process
    from bough.progress import Report

_BUFFER = 256 * 1024
_MISSING, _NO_PARENT, _NOT_DIRECTORY, _NOT_FILE = 71, 72, 73, 74

# Run as: sh -c SCRIPT sh DESTINATION NAME KIND TEMPORARY. The archive has one entry at its top, "it".
# KIND: file, tree, or content (of a directory). $4 is where it is unpacked first, in the same directory.
# `printf x` and its removal: $() would eat newlines at the end of a name.
_RECEIVE = r"""
dest=$1 name=$2 kind=$3
case $dest in */) [ -d "$dest" ] || exit 73 ;; esac
if [ -d "$dest" ]; then
  if [ "$kind" != content ]; then dest=${dest%/}/$name; fi
else
  case $kind in content) mkdir -- "$dest" 2>/dev/null || exit 72 ;; esac
fi
if [ "$kind" = content ]; then
  cd -- "$dest" && exec tar --no-same-owner -xpf - --strip-components=1; exit 2
fi
if [ -L "$dest" ] && [ -e "$dest" ]; then dest=$(readlink -f -- "$dest"; printf x) && dest=${dest%??}; fi
parent=${dest%/*}
[ "$parent" = "$dest" ] && parent=.
[ -n "$parent" ] || parent=/
base=${dest##*/}
cd -- "$parent" 2>/dev/null || exit 72
if [ "$kind" = file ] && [ -d "./$base" ]; then exit 74; fi
if [ "$kind" = tree ] && [ -e "./$base" ] && [ ! -d "./$base" ]; then exit 73; fi
if [ "$kind" = tree ] && [ -d "./$base" ]; then
  cd -- "./$base" && exec tar --no-same-owner -xpf - --strip-components=1; exit 2
fi
trap 'rm -rf -- "$4"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -m 700 -- "$4" || exit 2
tar --no-same-owner -C "$4" -xpf - || exit 2
mv -T -f -- "$4/it" "./$base" || exit 2
"""

# Run as: sh -c SCRIPT sh SOURCE. A directory's entries are below "./"; a file is "./NAME".
_SEND = r"""
[ -e "$1" ] || [ -L "$1" ] || { cat -- "$1" >/dev/null 2>&1; exit 71; }
if [ -d "$1" ]; then cd -- "$1" && exec tar --sparse --format=posix \
  --pax-option=delete=atime,delete=ctime -cf - .; exit 2; fi
parent=${1%/*}
if [ "$parent" != "$1" ]; then cd -- "${parent:-/}" || exit 2; fi
exec tar --sparse --format=posix --pax-option=delete=atime,delete=ctime -h -cf - -- "./${1##*/}"
"""


class CopyResult(NamedTuple):
    """What was copied; `skipped` are devices, pipes and sockets."""

    files: int
    bytes: int
    skipped: tuple[str, ...]


def copy_in(
    machine: Machine,
    source: str | os.PathLike[str] | BinaryIO,
    destination: str,
    progress: Report | None = None,
) -> CopyResult:
    """From the host, or from an open file, into the guest.

    Raises:
        NotFound: the source is not there, or the directory that is to hold it.
        InvalidInput: the one is a directory and the other is not.
        GuestRefused: the guest could not write it; NoSpace: because its disk is full.
    """
    if not destination:
        raise InvalidInput("expected a path in the guest, got nothing")
    if not isinstance(source, str | os.PathLike):
        return _copy_stream_in(machine, source, destination, progress)
    path = os.fspath(source)
    info = _stat_source(path)
    is_tree = stat.S_ISDIR(info.st_mode)
    kind = "file"
    if is_tree:
        kind = "content" if path.rstrip("/").endswith("/.") or path.rstrip("/") == "." else "tree"
    name = os.path.basename(os.path.realpath(path) if is_tree else path.rstrip("/"))  # noqa: PTH119
    total = info.st_size if not is_tree else None

    def pack(packer: Packer) -> None:
        packer.add(path, "it", follow=True)

    return _send_tar(machine, pack, destination, name or "root", kind, _Meter(progress, path, total))


def write_file(machine: Machine, path: str, content: bytes, mode: int) -> None:
    import io

    def pack(packer: Packer) -> None:
        packer.add_stream(io.BytesIO(content), "it", len(content), mode & 0o7777, time.time_ns())

    _send_tar(machine, pack, path, "", "file", _Meter(None, path, None))


def _stat_source(path: str) -> os.stat_result:
    try:
        info = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise NotFound(f"no file {path}", path=path) from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", path=path) from error
    if path.endswith("/") and not stat.S_ISDIR(info.st_mode):
        raise InvalidInput(f"{path} is not a directory", path=path)
    if not (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)):
        raise InvalidInput(f"{path} is neither a file nor a directory", hint="- copies standard input")
    if not os.access(path, os.R_OK):
        raise InvalidInput(f"cannot read {path}: Permission denied", path=path)
    return info


def _send_tar(
    machine: Machine,
    pack: Callable[[Packer], None],
    destination: str,
    name: str,
    kind: str,
    meter: _Meter,
) -> CopyResult:
    temporary = f".bough-{os.urandom(6).hex()}"
    argv = ("sh", "-c", _RECEIVE, "sh", destination, name, kind, temporary)
    with machine.spawn(*argv, env={"LC_ALL": "C"}) as process:
        answer = _Answer(process)
        sink = _Sink(process)
        packer = Packer(sink, meter.count)  # type: ignore[arg-type]
        try:
            pack(packer)
            packer.close()
            sink.flush()
            process.close_stdin()
        except BrokenPipeError:
            pass  # the guest says why below
        except OSError as error:
            raise InvalidInput(f"cannot read {error.filename}: {error.strerror}") from error
        code, said = answer.wait()
    if code != 0:
        _raise_of_guest(machine, code, said, destination)
    return CopyResult(packer.files, packer.bytes, tuple(packer.skipped))


def _copy_stream_in(
    machine: Machine, source: BinaryIO, destination: str, progress: Report | None
) -> CopyResult:
    """Of unknown size, so without an archive."""
    script = (
        '[ -d "$1" ] && exit 74; case $1 in */) exit 73 ;; esac; t=$1.$2; trap \'rm -f -- "$t"\' EXIT; '
        "trap 'exit 1' HUP INT TERM; "
        '[ -L "$1" ] || [ ! -e "$1" ] || [ -f "$1" ] || exec cat >"$1"; '
        'if [ -L "$1" ]; then exec cat >"$1"; fi; '
        'parent=${1%/*}; [ "$parent" = "$1" ] || [ -z "$parent" ] || [ -d "$parent" ] || exit 72; '
        'cat >"$t" || exit 2; [ ! -f "$1" ] || chmod --reference="$1" -- "$t"; mv -f -- "$t" "$1" || exit 2'
    )
    meter = _Meter(progress, "standard input", None)
    argv = ("sh", "-c", script, "sh", destination, f"bough-{os.urandom(6).hex()}")
    size = 0
    with machine.spawn(*argv, env={"LC_ALL": "C"}) as process:
        answer = _Answer(process)
        try:
            read = getattr(source, "read1", source.read)
            while data := read(_BUFFER):
                process.write(data)
                size += len(data)
                meter.count(len(data))
            process.close_stdin()
        except BrokenPipeError:
            pass
        code, said = answer.wait()
    if code != 0:
        _raise_of_guest(machine, code, said, destination)
    return CopyResult(1, size, ())


def copy_out(
    machine: Machine,
    source: str,
    destination: str | os.PathLike[str] | BinaryIO,
    progress: Report | None = None,
) -> CopyResult:
    """From the guest to the host, or into an open file (one file only).

    Raises:
        NotFound: the source is not there, or the directory that is to hold it.
        InvalidInput: the one is a directory and the other is not.
        ProtocolError: the guest sent what would not stay where it belongs; what came before it is there.
        NoSpace: the host's disk is full.
    """
    if not source:
        raise InvalidInput("expected a path in the guest, got nothing")
    meter = _Meter(progress, source, None)
    if not isinstance(destination, str | os.PathLike):
        return _copy_stream_out(machine, source, destination, meter)
    target = os.fspath(destination)
    try:
        with _Sending(machine, source) as archive:
            return _receive(archive, source, target, meter)
    except (tarfile.TarError, EOFError) as error:
        raise ProtocolError(f"the guest sent what is no archive: {error}", machine=machine.name) from error
    except OSError as error:
        raise_of_host(error, target)


class _Sending:
    """The archive that the guest sends; on leaving, what the guest had to say."""

    def __init__(self, machine: Machine, source: str) -> None:
        self._machine = machine
        self._source_path = source

    def __enter__(self) -> tarfile.TarFile:
        argv = ("sh", "-c", _SEND, "sh", self._source_path)
        self._process = self._machine.spawn(*argv, env={"LC_ALL": "C"})
        self._source = _Source(self._process)
        try:
            self._process.close_stdin()
            archive: tarfile.TarFile = tarfile.open(  # type: ignore[call-overload]
                fileobj=self._source,
                mode="r|",
                bufsize=_BUFFER,
                encoding="utf-8",
                errors="surrogateescape",
            )
            return archive
        except tarfile.ReadError:
            # Nothing came: the guest says why.
            self._tell()
            self._process.close()
            raise
        except BaseException:
            self._process.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, tarfile.TarError | EOFError):
                self._tell()
        finally:
            self._process.close()

    def _tell(self) -> None:
        status, said = self._source.finish()
        # 1: a file changed while it was read; that is said of every log.
        if status not in (0, 1):
            _raise_of_guest(self._machine, status, said, self._source_path)


def _receive(archive: tarfile.TarFile, source: str, target: str, meter: _Meter) -> CopyResult:
    first = archive.next()
    if first is None:
        raise tarfile.ReadError("it is empty")
    is_tree = first.isdir()
    name = to_bytes(source.rstrip("/")).rpartition(b"/")[2]
    place = os.fsencode(target)
    into = os.path.isdir(place)  # noqa: PTH112
    if target.endswith("/") and not into:
        raise NotFound(f"no directory {target}", path=target)
    if not is_tree:
        place = os.path.join(place, name) if into else place  # noqa: PTH118
        return _receive_file(archive, first, place, meter)
    content = source.rstrip("/").endswith("/.") or name in (b"", b".", b"..")
    if into and not content:
        place = os.path.join(place, name)  # noqa: PTH118
    return _receive_tree(archive, first, place, meter)


def _receive_file(
    archive: tarfile.TarFile, member: tarfile.TarInfo, place: bytes, meter: _Meter
) -> CopyResult:
    if os.path.isdir(place):  # noqa: PTH112
        raise InvalidInput(f"{os.fsdecode(place)} is a directory, the source is a file")
    if not member.isreg():
        raise InvalidInput(f"{member.name} is neither a file nor a directory")
    # As `cp` does: through a link to a file that is there.
    place = os.path.realpath(place)
    parent, name = os.path.split(place)
    if not os.path.isdir(parent):  # noqa: PTH112
        raise NotFound(f"no directory {os.fsdecode(parent)}", path=os.fsdecode(parent))
    meter.total = member.size
    with Unpacker(parent, meter.count) as unpacker:
        unpacker.extract(archive, member, (name,))
        if archive.next() is not None:
            raise ProtocolError("the guest sent more than the file that was asked for")
        return CopyResult(unpacker.files, unpacker.bytes, ())


def _receive_tree(
    archive: tarfile.TarFile, first: tarfile.TarInfo, place: bytes, meter: _Meter
) -> CopyResult:
    if os.path.lexists(place) and not os.path.isdir(place):  # noqa: PTH112
        raise InvalidInput(f"{os.fsdecode(place)} is not a directory, the source is one")
    if not os.path.isdir(place):  # noqa: PTH112
        try:
            os.mkdir(place, 0o700)  # noqa: PTH102
        except FileNotFoundError:
            parent = os.fsdecode(os.path.dirname(place))  # noqa: PTH120
            raise NotFound(f"no directory {parent}", path=parent) from None
    with Unpacker(place, meter.count) as unpacker:
        member: tarfile.TarInfo | None = first
        while member is not None:
            unpacker.extract(archive, member, parse_name(to_bytes(member.name)))
            # tarfile keeps every member for a second reading that a stream cannot have.
            archive.members = []  # type: ignore[attr-defined]
            member = archive.next()
        unpacker.finish()
        return CopyResult(unpacker.files, unpacker.bytes, tuple(unpacker.skipped))


def _copy_stream_out(machine: Machine, source: str, target: BinaryIO, meter: _Meter) -> CopyResult:
    size = 0
    script = '[ -e "$1" ] || exit 71; [ ! -d "$1" ] || exit 74; exec cat -- "$1"'
    said = b""
    with machine.spawn("sh", "-c", script, "sh", source, env={"LC_ALL": "C"}) as process:
        process.close_stdin()
        for stream, data in process:
            if stream == "stderr":
                said = (said + data)[-4000:]
                continue
            target.write(data)
            size += len(data)
            meter.count(len(data))
        code = process.wait().shell_code
        target.flush()
    if code != 0:
        _raise_of_guest(machine, code, said, source)
    return CopyResult(1, size, ())


def read_file(machine: Machine, path: str, max_bytes: int) -> bytes:
    content = bytearray()

    class Bounded:
        def write(self, data: bytes) -> None:
            content.extend(data)
            if len(content) > max_bytes:
                raise InvalidInput(
                    f"{path} in machine '{machine.name}' is larger than {format_size(max_bytes)}",
                    hint="copy it, or give max_bytes",
                )

        def flush(self) -> None:
            pass

    copy_out(machine, path, Bounded())  # type: ignore[arg-type]
    return bytes(content)


# -- the two ends of a stream -------------------------------------------------------------------------


class _Sink:
    """Gathers what is written into messages of a good size."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if len(data) >= _BUFFER:
            self.flush()
            self._process.write(data)
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            self._process.write(b"".join(parts))


class _Source:
    """A command's standard output as a file to read; its standard error is kept."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._rest = b""
        self._said = b""

    def read(self, size: int) -> bytes:
        parts = []
        while size > 0:
            if not self._rest:
                output = self._process.read()
                if output is None:
                    break
                stream, data = output
                if stream == "stderr":
                    self._said = (self._said + data)[-4000:]
                    continue
                self._rest = data
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> tuple[int, bytes]:
        """Exit status and the end of standard error; what else came is dropped."""
        while self.read(_BUFFER):
            pass
        return self._process.wait().shell_code, self._said


class _Answer:
    """Reads what a receiving command says, so that it never waits for us while we write."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._said = b""
        self._error: BoughError | None = None
        self._thread = threading.Thread(target=self._read, name="bough copy", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for _, data in self._process:
                self._said = (self._said + data)[-4000:]
        except BoughError as error:
            self._error = error

    def wait(self) -> tuple[int, bytes]:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._process.wait().shell_code, self._said


class _Meter:
    """Counts bytes and tells about them ten times a second at most."""

    def __init__(self, report: Report | None, what: str, total: int | None) -> None:
        self._report = report
        self._what = what
        self.total = total
        self._done = 0
        self._begin = self._told = time.monotonic()

    def count(self, size: int) -> None:
        self._done += size
        if self._report is None:
            return
        now = time.monotonic()
        if now - self._told < 0.1 and self._done != self.total:
            return
        self._told = now
        from bough.progress import Progress

        rate = self._done / max(now - self._begin, 0.001)
        fraction = min(1.0, self._done / self.total) if self.total else None
        detail = f"{format_size(self._done)}, {format_size(int(rate))}/s"
        self._report(Progress(f"copying {self._what}", fraction, detail))


# -- what went wrong ----------------------------------------------------------------------------------


def _raise_of_guest(machine: Machine, code: int, said: bytes, path: str) -> NoReturn:
    where = f"in machine '{machine.name}'"
    text = said.decode(errors="replace").strip()
    facts: dict[str, Any] = {"machine": machine.name, "path": path}
    if code == _MISSING:
        raise NotFound(f"no file {path} {where}", **facts)
    if code == _NO_PARENT:
        raise NotFound(f"no directory {os.path.dirname(path.rstrip('/')) or path} {where}", **facts)  # noqa: PTH120
    if code == _NOT_DIRECTORY:
        raise InvalidInput(f"{path} {where} is not a directory", **facts)
    if code == _NOT_FILE:
        raise InvalidInput(f"{path} {where} is a directory", **facts)
    if "No space left" in text:
        raise NoSpace(f"no space left for {path} {where}", **facts)
    reason = _reason(text) or f"the guest's command ended with {code}"
    raise GuestRefused(f"cannot copy {path} {where}: {reason}", output=text, **facts)


def _reason(text: str) -> str:
    """The line that says most: tar's last one is always the same."""
    lines = [line for line in text.splitlines() if "exiting with failure status" not in line.lower()]
    return lines[-1].strip()[:300] if lines else ""


def raise_of_host(error: OSError, target: str) -> NoReturn:
    import errno

    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else target
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise NoSpace(f"no space left on this host for {target}", path=target) from error
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        raise InvalidInput(
            f"{place} below {target} is a link or a file, where the copy has a directory"
        ) from error
    raise InvalidInput(f"cannot write {place}: {error.strerror}", path=target) from error

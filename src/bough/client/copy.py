"""Copy files and trees into a guest and out of a guest, as `cp -r` copies within a host.

A file or a directory becomes the destination, or goes into the destination if that is a directory. SOURCE/.
means the content of SOURCE. A destination that ends in / must be a directory. So must the destination of
several sources. Links that the caller names are followed, as the source or the destination. Links below stay
links, and are never written through.

Existing entries: directories merge, and keep their modes. A file or a link replaces a file, or a link that
does not lead to a directory; a link replaces any link. Any other existing entry stays. The copy goes on, and
an error names each entry that was not copied. A file arrives complete or not at all.

Modes, times, links, hard links, holes, ACLs and `user.*` attributes are kept. Owners, set-id bits and
capabilities are kept with `owner`, if root receives. `CopyResult.not_kept` names each loss.

Both ends run the same code (client/copying/ends.py). The stream between them is never stored.
"""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from bough.client.copying.archive import Reader
from bough.client.copying.ends import Receiver, check_source, name_of, send
from bough.client.copying.errors import (
    check_names,
    raise_failed,
    raise_fault_of_guest,
    raise_fault_of_host,
    raise_of_guest,
    raise_of_host,
    tell_not_kept,
)
from bough.client.copying.pack import Packer
from bough.client.copying.program import COMMAND, render_program
from bough.client.copying.report import CopyReport, Fault
from bough.client.copying.streams import Answer, Meter, Sink, Source
from bough.errors import InvalidInput, ProtocolError
from bough.units import format_size

if TYPE_CHECKING:
    from bough.client.copying.guest import Guest
    from bough.progress import Report

    Path = str | os.PathLike[str]

__all__ = ["CopyResult", "copy_in", "copy_out", "read_file", "write_file"]

_BUFFER = 256 * 1024
_ENV = {"LC_ALL": "C"}

# Run as: sh -c SCRIPT sh ESCAPED-PATH TEMPORARY MODE. The path has octal escapes: any byte is allowed.
# `x` and its removal: $() would remove newlines at the end. Without MODE, the existing mode or 644.
_WRITE = r"""
path=$(printf '%bx' "$1") && path=${path%x}
[ -d "$path" ] && exit 74
case $path in */) exit 73 ;; esac
if [ -L "$path" ]; then
  [ -e "$path" ] || exit 76
  [ ! -f "$path" ] || { path=$(readlink -f -- "$path"; printf x) && path=${path%??}; }
fi
[ ! -e "$path" ] || [ -f "$path" ] || exec cat >"$path"
parent=${path%/*}
[ "$parent" = "$path" ] || [ -z "$parent" ] || [ -d "$parent" ] || exit 72
[ "$parent" = "$path" ] && parent=.
temporary=$parent/$2
trap 'rm -f -- "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
(umask 077 && cat >"$temporary") || exit 2
if [ -f "$path" ]; then
  # Not --reference: busybox has no such option.
  chown "$(stat -c %u:%g -- "$path")" "$temporary" || exit 2
  [ -n "$3" ] || chmod "$(stat -c %a -- "$path")" "$temporary" || exit 2
fi
if [ -n "$3" ] || [ ! -f "$path" ]; then chmod "${3:-644}" -- "$temporary" || exit 2; fi
mv -T -f -- "$temporary" "$path" 2>/dev/null && exit
cat <"$temporary" >"$path" || exit 2
"""
_READ = r"""
path=$(printf '%bx' "$1") && path=${path%x}
[ -e "$path" ] || exit 71
[ ! -d "$path" ] || exit 74
exec cat -- "$path"
"""


class CopyResult(NamedTuple):
    """The outcome of a copy.

    Attributes:
        skipped: devices, pipes and sockets, which are left out; the first 100 of each.
        not_kept: a sentence for each kind of loss, with the first names.
    """

    files: int
    bytes: int
    skipped: tuple[str, ...]
    not_kept: tuple[str, ...] = ()


def copy_in(
    machine: Guest,
    source: Path | Sequence[Path] | BinaryIO,
    destination: str,
    progress: Report | None = None,
    *,
    owner: bool = False,
) -> CopyResult:
    """Copy from the host, or from an open file, into the guest.

    Raises:
        NotFound: the source, or the directory that is to hold it, does not exist.
        InvalidInput: a directory meets a file; or some entries could not be copied, and `problems` names
            them.
        GuestRefused: the guest could not write; NoSpace: because its disk is full.
    """
    _check_path(destination)
    if not isinstance(source, str | os.PathLike | Sequence):
        return _copy_stream_in(machine, source, destination, progress)
    paths = _paths(source)
    names = [name_of(path) for path in paths]
    try:
        sizes = [check_source(path) for path in paths]
    except Fault as fault:
        raise_fault_of_host(fault)
    check_names(names)
    only_file = len(paths) == 1 and not os.path.isdir(paths[0])  # noqa: PTH112
    meter = Meter(progress, os.fsdecode(paths[0]), sizes[0].st_size if only_file else None)
    program = render_program("receive", [os.fsencode(destination)], names, owner)
    sent = CopyReport()
    with machine.spawn(*COMMAND, env=_ENV, as_image=False) as process:
        answer = Answer(process)
        sink = Sink(process)
        try:
            sink.write(program)
            send(paths, Packer(sink.write, meter.count, owner=owner, notes=sent))
            sink.flush()
            process.close_stdin()
        except BrokenPipeError:
            pass  # the guest's report below has the reason
        except OSError as error:
            raise InvalidInput(f"cannot read {os.fsdecode(paths[0])}: {error.strerror}") from error
        status, said = answer.wait()
    notes = raise_fault_of_guest(machine, status, said, destination)
    sent.merge(notes)
    return _result(sent, notes.files, notes.bytes, destination, machine, notes.failed)


def copy_out(
    machine: Guest,
    source: str | Sequence[str],
    destination: Path | BinaryIO,
    progress: Report | None = None,
    *,
    owner: bool = False,
) -> CopyResult:
    """Copy from the guest to the host, or into an open file (one file only).

    Raises:
        NotFound: the source, or the directory that is to hold it, does not exist.
        InvalidInput: a directory meets a file; `owner` without root; or some entries could not be copied, and
            `problems` names them.
        ProtocolError: the guest sent a malformed or malicious stream; complete entries stay.
        NoSpace: the host's disk is full.
    """
    sources = [source] if isinstance(source, str) else list(source)
    for path in sources:
        _check_path(path)
    if not isinstance(destination, str | os.PathLike):
        if len(sources) != 1:
            raise InvalidInput("only one file goes to standard output")
        return _copy_stream_out(machine, sources[0], destination, Meter(progress, sources[0], None))
    if owner and os.geteuid() != 0:
        raise InvalidInput(
            "only root can keep the owners of files that come from a guest",
            hint="leave --owner out, or run this as root",
        )
    paths = _paths(sources)
    names = [name_of(path) for path in paths]
    check_names(names)
    target = os.fsencode(os.fspath(destination))
    meter = Meter(progress, sources[0], None)

    def begin(entry: object) -> None:
        if len(paths) == 1 and getattr(entry, "kind", "") == "file":
            meter.total = getattr(entry, "size", None)

    receiver = Receiver(target, names, meter.count, begin, owner=owner)
    notes = _receive(machine, receiver, render_program("send", paths, names, owner), sources)
    got = receiver.notes
    failed = list(got.failed)
    got.merge(notes)
    return _result(got, got.files, got.bytes, os.fsdecode(target), machine, failed, outward=True)


def _receive(machine: Guest, receiver: Receiver, program: bytes, sources: list[str]) -> CopyReport:
    """Return the notes of the guest's end. The guest's error takes precedence over a truncated stream."""
    with machine.spawn(*COMMAND, env=_ENV, as_image=False) as process:
        source = Source(process)
        with suppress(BrokenPipeError):  # the guest's report below has the reason
            process.write(program)
        process.close_stdin()
        try:
            receiver.receive(Reader(source.read))
        except ProtocolError:
            status, said = source.finish()
            raise_fault_of_guest(machine, status, said, sources[0])
            raise
        except Fault as fault:
            raise_fault_of_host(fault)
        except OSError as error:
            raise_of_host(error, os.fsdecode(receiver.destination))
        status, said = source.finish()
    return raise_fault_of_guest(machine, status, said, sources[0])


def write_file(machine: Guest, path: str, content: bytes, mode: int) -> None:
    import io

    _check_path(path)
    _copy_stream_in(machine, io.BytesIO(content), path, None, f"{mode & 0o7777:o}")


def _check_path(path: str) -> None:
    if not path:
        raise InvalidInput("expected a path in the guest, got nothing")
    if "\0" in path:
        raise InvalidInput("a path cannot contain NUL")


def _paths(source: Path | Sequence[Path]) -> list[bytes]:
    given = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not given:
        raise InvalidInput("expected something to copy, got nothing")
    return [os.fsencode(path) for path in given]


def _result(
    notes: CopyReport,
    files: int,
    size: int,
    destination: str,
    machine: Guest,
    failed_there: list[tuple[bytes, str]],
    *,
    outward: bool = False,
) -> CopyResult:
    """Return the result; raises InvalidInput if entries could not be copied."""
    skipped = tuple(
        os.fsdecode(name)
        for reason in ("pipe", "socket", "device")
        for name in notes.kept_out.get(reason, (0, []))[1]
    )
    not_kept = tell_not_kept(notes)
    raise_failed(notes, files, destination, machine, failed_there, not_kept, outward=outward)
    return CopyResult(files, size, skipped, not_kept)


# -- one file, as a stream ----------------------------------------------------------------------------


def _escape(path: str) -> str:
    """Escape a path for `printf %b`: messages to the service are text, a path is any bytes."""
    plain = set(b"/._-" + string.ascii_letters.encode() + string.digits.encode())
    return "".join(chr(c) if c in plain else f"\\0{c:03o}" for c in os.fsencode(path))


def _copy_stream_in(
    machine: Guest, source: BinaryIO, destination: str, progress: Report | None, mode: str = ""
) -> CopyResult:
    """Copy content of unknown size, without an archive."""
    meter = Meter(progress, "standard input", None)
    argv = ("/bin/sh", "-c", _WRITE, "sh", _escape(destination), f".bough-{os.urandom(6).hex()}", mode)
    size = 0
    with machine.spawn(*argv, env=_ENV, as_image=False) as process:
        answer = Answer(process)
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
        raise_of_guest(machine, code, said, destination)
    return CopyResult(1, size, ())


def _copy_stream_out(machine: Guest, source: str, target: BinaryIO, meter: Meter) -> CopyResult:
    size = 0
    said = b""
    with machine.spawn("/bin/sh", "-c", _READ, "sh", _escape(source), env=_ENV, as_image=False) as process:
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
        raise_of_guest(machine, code, said, source)
    return CopyResult(1, size, ())


def read_file(machine: Guest, path: str, max_bytes: int) -> bytes:
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

"""Errors and warnings of a copy, in words."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NoReturn

from bough.client.copying.program import NO_PYTHON
from bough.client.copying.report import CopyReport, Fault, parse
from bough.errors import (
    BoughError,
    GuestRefused,
    InvalidInput,
    NoSpace,
    NotFound,
    ProtocolError,
)

if TYPE_CHECKING:
    from bough.client.copying.guest import Guest

MISSING, NO_PARENT, NOT_DIRECTORY, NOT_FILE, DANGLING = 71, 72, 73, 74, 76
_STATUS = {
    MISSING: "missing",
    NO_PARENT: "no_parent",
    NOT_DIRECTORY: "not_directory",
    NOT_FILE: "is_directory",
    DANGLING: "dangling",
}
_FAULTS: dict[str, tuple[type[BoughError], str, str | None]] = {
    "missing": (NotFound, "no file {}", None),
    "no_parent": (NotFound, "no directory {}", None),
    "not_directory": (InvalidInput, "{} is not a directory", None),
    "is_directory": (InvalidInput, "{} is a directory", None),
    "special": (InvalidInput, "{} is neither a file nor a directory", "- copies standard input"),
    "dangling": (
        InvalidInput,
        "{} is a link to a file that is not there",
        "remove the link, or name the file that it should lead to",
    ),
}
#: Bytes of a guest's standard error that are shown.
_MOST_SAID = 4000
_MOST_SHOWN = 10
#: Reason: the words for one entry, and for several.
_NOT_KEPT = {
    "pipe": ("left out {} pipe", "left out {} pipes"),
    "socket": ("left out {} socket", "left out {} sockets"),
    "device": ("left out {} device", "left out {} devices"),
    "owner": ("did not keep the owner of {} entry", "did not keep the owners of {} entries"),
    "set-id": (
        "did not keep the set-user-id or set-group-id bit of {} entry",
        "did not keep the set-user-id or set-group-id bits of {} entries",
    ),
    "capability": ("did not keep the capabilities of {} file", "did not keep the capabilities of {} files"),
    "mode": ("did not keep the mode of {} entry", "did not keep the modes of {} entries"),
    "time": ("did not keep the time of {} entry", "did not keep the times of {} entries"),
    "acl": ("did not keep the ACL of {} entry", "did not keep the ACLs of {} entries"),
    "xattr": (
        "did not keep an extended attribute of {} entry",
        "did not keep extended attributes of {} entries",
    ),
    "shrank": (
        "{} file became shorter while it was read, and ends in zeros",
        "{} files became shorter while they were read, and end in zeros",
    ),
}


def show(path: bytes | str) -> str:
    """Return a name as text on one line. A guest chooses names, so control characters are escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_names(names: list[bytes]) -> None:
    """Check that no two sources have the same name. Raises InvalidInput."""
    for name in names:
        if name and names.count(name) > 1:
            raise InvalidInput(
                f"two of the sources are named {show(name)}", hint="copy them one after the other"
            )


# -- a copy that could not be made --------------------------------------------------------------------


def raise_fault_of_host(fault: Fault) -> NoReturn:
    error = _fault_error(fault, "", InvalidInput)
    error.details["path"] = os.fsdecode(fault.path)
    raise error from None


def raise_fault_of_guest(machine: Guest, status: int, said: bytes, path: str) -> CopyReport:
    """Return the notes of the guest's end.

    Raises:
        BoughError: the guest's end failed.
    """
    try:
        notes, before = parse(said)
    except (ValueError, KeyError):
        raise ProtocolError("the guest sent an invalid report", machine=machine.name) from None
    if notes is None or status not in (0, 3):
        raise_of_guest(machine, status, before, path)
    if notes.fault is not None:
        error = _fault_error(notes.fault, f" in machine '{machine.name}'", GuestRefused)
        error.details |= {"machine": machine.name, "path": os.fsdecode(notes.fault.path)}
        raise error
    return notes


def _fault_error(fault: Fault, where: str, other: type[BoughError]) -> BoughError:
    path = show(fault.path) or "."
    if fault.kind == "no_space":
        return NoSpace(f"no space left for {path}{where or ' on this host'}")
    if fault.kind in _FAULTS:
        kind, text, hint = _FAULTS[fault.kind]
        return kind(text.format(path + where), hint=hint)
    verb = "read" if fault.kind == "unreadable" else "write"
    return other(f"cannot {verb} {path}{where}: {show(fault.text)}")


def raise_of_guest(machine: Guest, code: int, said: bytes, path: str) -> NoReturn:
    """Raise the error for a command's exit status and standard error."""
    where = f" in machine '{machine.name}'"
    text = said[-_MOST_SAID:].decode(errors="replace").strip()
    facts: dict[str, Any] = {"machine": machine.name, "path": path}
    if code in _STATUS:
        named = path
        if code == NO_PARENT:
            named = os.path.dirname(path.rstrip("/")) or path  # noqa: PTH120
        error = _fault_error(Fault(_STATUS[code], os.fsencode(named)), where, GuestRefused)
        error.details |= facts
        raise error
    if code == NO_PYTHON:
        raise GuestRefused(
            f"machine '{machine.name}' has no Python 3, which copying needs",
            hint=f"- copies one file without it: bough cp - {machine.name}:PATH < FILE",
            **facts,
        )
    if "No space left" in text:
        raise NoSpace(f"no space left for {show(path)}{where}", **facts)
    reason = text.splitlines()[-1].strip()[:300] if text else f"the guest's command ended with {code}"
    raise GuestRefused(f"cannot copy {show(path)}{where}: {show(reason)}", output=text, **facts)


def raise_of_host(error: OSError, target: str) -> NoReturn:
    place = show(error.filename if isinstance(error.filename, str | bytes) else target)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise NoSpace(f"no space left on this host for {show(target)}", path=target) from error
    raise InvalidInput(f"cannot write {place}: {error.strerror}", path=target) from error


# -- a copy that is not complete ----------------------------------------------------------------------


def tell_not_kept(notes: CopyReport) -> tuple[str, ...]:
    """Return a sentence for each kind of loss, with the first names."""
    told = []
    for reason, (one, many) in _NOT_KEPT.items():
        count, names = notes.kept_out.get(reason, (0, []))
        if count:
            shown = ", ".join(show(name) for name in names[:_MOST_SHOWN])
            more = f" and {count - _MOST_SHOWN} more" if count > _MOST_SHOWN else ""
            told.append(f"{(one if count == 1 else many).format(count)}: {shown}{more}")
    return tuple(told)


def raise_failed(
    notes: CopyReport,
    files: int,
    destination: str,
    machine: Guest,
    failed_there: list[tuple[bytes, str]],
    not_kept: tuple[str, ...],
    *,
    outward: bool,
) -> None:
    """Raise InvalidInput for entries that could not be copied.

    `failed_there` are the failures of the receiving end.
    """
    if not notes.failures:
        return
    problems = []
    for path, text in notes.failed:
        in_guest = outward != ((path, text) in failed_there)
        where = f" in machine '{machine.name}'" if in_guest else ""
        problems.append({"place": show(path) + where, "message": show(text), "hint": None})
    if notes.failures == 1:
        message = "not copied: {place}: {message}".format(**problems[0])
    else:
        message = f"{notes.failures} entries were not copied to {show(destination)}, {files} were"
    hint = None
    in_the_way = [text for _, text in failed_there if text.endswith("is there")]
    if any("link" in text for text in in_the_way):
        hint = "copy to the directory that the link leads to, or remove the link first"
    elif in_the_way:
        hint = "copy to another place, or remove the existing entry first"
    raise InvalidInput(message, hint=hint, problems=problems, machine=machine.name, not_kept=list(not_kept))

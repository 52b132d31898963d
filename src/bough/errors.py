"""Every error that bough raises on purpose, in one tree.

    BoughError
    ├── InvalidInput            what was asked for makes no sense
    │   ├── InvalidSpec         ... a machine spec; carries every problem at once
    │   ├── BeyondHost          ... more than this host has; force overrides
    │   ├── BadImage            a disk image is broken, is no disk image, or names files of the host
    │   └── BadBundle           a bundle is cut off, altered, or cannot be continued here
    ├── NotFound                no machine, image, file of that name
    ├── Unauthorized            the API over TCP was asked without its token
    ├── Conflict                the request is fine, the state of things is not
    │   ├── NameTaken
    │   ├── WrongState          a running machine was to be deleted, a stopped one paused
    │   └── InUse               an image that machines stand on was to be deleted
    ├── HostLacks               a program or a right is missing on the host
    ├── NoSpace                 a file system of the host is full
    ├── MachineFailed           QEMU ended, or never came up; carries stderr and console
    │   └── SnapshotDamaged     what was read of a snapshot is not what was written
    ├── QmpRefused              QEMU understood a command and said no
    ├── QmpLost                 the connection to QEMU broke
    ├── AgentUnavailable        the machine runs, its agent does not answer
    │   └── AgentTimeout        ... within the time given; carries the end of the console
    ├── BootFailed              the machine runs, and its guest was seen not to come up
    ├── GuestRefused            the guest was asked and said no (no such file, no such user)
    ├── CommandFailed           a command in a guest ended with another status than 0
    ├── BuildFailed             an image could not be built; carries the end of the output
    ├── DownloadFailed          a server did not give the file, or not the one that was asked for
    ├── DeadlineExceeded        any other bounded wait that ran out
    ├── ServiceUnavailable      the service of this BOUGH_HOME cannot be reached or started
    └── ProtocolError           the other side sent what the protocol does not allow

An error crosses the API as `to_dict()` and is raised again on the other side as the same class by
`error_from_dict()`, so a Python client catches what the hypervisor raised.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes longer to load than this
if TYPE_CHECKING:
    from typing import Any, ClassVar


class BoughError(Exception):
    """Base of all errors; what happened, what to do next, and typed details.

    Attributes:
        code: stable identifier for programs; one per class.
        message: one sentence that names what was wrong.
        hint: what to do next, or None.
        details: JSON-able facts (the machine, the tail of a log, ...); also readable as attributes.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = {key: value for key, value in details.items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["details"][name]
        except KeyError:
            raise AttributeError(name) from None

    def to_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}


class InvalidInput(BoughError):
    code = "invalid-input"
    http_status = 422


class InvalidSpec(InvalidInput):
    """`problems` is a list of {"place": "disks[0].size", "message": ..., "hint": ... or None}."""

    code = "invalid-spec"


class BeyondHost(InvalidInput):
    code = "beyond-host"


class BadImage(InvalidInput):
    """Nothing of it was kept; details: output (the end of a program's, where one looked)."""

    code = "bad-image"


class BadBundle(InvalidInput):
    """Nothing of it was kept."""

    code = "bad-bundle"


class NotFound(BoughError):
    code = "not-found"
    http_status = 404


class Unauthorized(BoughError):
    code = "unauthorized"
    http_status = 401


class Conflict(BoughError):
    code = "conflict"
    http_status = 409


class NameTaken(Conflict):
    code = "name-taken"


class WrongState(Conflict):
    code = "wrong-state"


class InUse(Conflict):
    code = "in-use"


class HostLacks(BoughError):
    code = "host-lacks"
    http_status = 503


class NoSpace(BoughError):
    code = "no-space"
    http_status = 507


class MachineFailed(BoughError):
    """details: machine, exit_status or signal, qemu_stderr, console (the ends of both)."""

    code = "machine-failed"


class SnapshotDamaged(MachineFailed):
    """What was read is not what was written; details: snapshot."""

    code = "snapshot-damaged"


class QmpRefused(BoughError):
    """QEMU understood the command and said no; details: command, error_class."""

    code = "qemu-refused"


class QmpLost(BoughError):
    """QEMU ended, or sent what is not QMP. The command may have been done."""

    code = "qmp-lost"


class AgentUnavailable(BoughError):
    code = "agent-unavailable"
    http_status = 409


class AgentTimeout(AgentUnavailable):
    """details: machine, timeout_s, console (its end). The machine is left running."""

    code = "agent-timeout"
    http_status = 504


class BootFailed(BoughError):
    """The machine is left running; details: machine, seen (a kind of boot_signs.py), console (its end)."""

    code = "boot-failed"
    http_status = 422


class GuestRefused(BoughError):
    """The guest answered with an error; details: machine, errno name if it had one."""

    code = "guest-refused"
    http_status = 422


class CommandFailed(BoughError):
    """It was run with `check`; details: argv, exit_code or signal, stdout, stderr (their ends, as text)."""

    code = "command-failed"


class BuildFailed(BoughError):
    """details: image, step, output (its end)."""

    code = "build-failed"


class DownloadFailed(BoughError):
    """details: url."""

    code = "download-failed"
    http_status = 502


class DeadlineExceeded(BoughError):
    code = "deadline-exceeded"
    http_status = 504


class ServiceUnavailable(BoughError):
    code = "service-unavailable"
    http_status = 503


class ProtocolError(BoughError):
    code = "protocol-error"
    http_status = 502


def _tree(cls: type[BoughError]) -> dict[str, type[BoughError]]:
    found = {cls.code: cls}
    for child in cls.__subclasses__():
        found |= _tree(child)
    return found


def error_from_dict(data: dict[str, Any]) -> BoughError:
    """The error that `to_dict()` described; a code of a newer version becomes a plain BoughError."""
    cls = _tree(BoughError).get(str(data.get("code")), BoughError)
    error = cls(str(data.get("message", "unknown error")), hint=data.get("hint"))
    error.details = dict(data.get("details") or {})
    return error

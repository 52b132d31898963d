"""All errors raised on purpose, in one tree.

    BoughError
    ├── InvalidInput            the request makes no sense
    │   ├── InvalidSpec         ... a machine spec; carries every problem at once
    │   ├── BeyondHost          ... more than this host has; force overrides
    │   ├── BadImage            a disk image is broken, is no disk image, or names files of the host
    │   └── BadBundle           a bundle is truncated, altered, or cannot be continued here
    ├── NotFound                no machine, image, file of that name
    ├── Unauthorized            a request over TCP lacks the token
    ├── Conflict                the request is valid, but not in the present state
    │   ├── NameTaken
    │   ├── WrongState          a running machine was to be deleted, a stopped machine paused
    │   └── InUse               an image that machines use was to be deleted
    ├── HostLacks               a program or a right is missing on the host
    ├── NoSpace                 a file system of the host is full
    ├── MachineFailed           QEMU ended, or never came up; carries stderr and console
    │   └── SnapshotDamaged     the content of a snapshot differs from its checksums
    ├── ProjectFailed           machines of a project are not up; carries the failure of each
    ├── QmpRefused              QEMU understood a command and refused it
    ├── QmpLost                 the connection to QEMU broke
    ├── SwitchLost              the connection to the switch of a network broke
    ├── AgentUnavailable        the machine runs, its agent does not answer
    │   └── AgentTimeout        ... within the time given; carries the end of the console
    ├── BootFailed              the machine runs, and signs show that its guest does not come up
    ├── GuestRefused            the guest refused a request (no such file, no such user)
    ├── CommandFailed           a command in a guest ended with a status other than 0
    ├── CheckFailed             a guest is not as the caller requires
    ├── BuildFailed             an image could not be built; carries the end of the output
    ├── DownloadFailed          a server did not send the file, or sent another file
    ├── DeadlineExceeded        any other bounded wait that ran out
    ├── ServiceUnavailable      the service of this BOUGH_HOME cannot be reached or started
    └── ProtocolError           the other side violated the protocol

An error crosses the API as `to_dict()`. `error_from_dict()` makes an error of the same class on the other
side, so a Python client catches the errors of the hypervisor.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes longer to import than this module
if TYPE_CHECKING:
    from typing import Any, ClassVar


class BoughError(Exception):
    """Base of all errors: a message, a hint, and typed details.

    Attributes:
        code: stable identifier for programs; one per class.
        message: one sentence that names the problem.
        hint: the next step for the user, or None.
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
    """A spec with problems.

    `problems` is a list of {"place": "disks[0].size", "message": ..., "hint": ... or None}.
    """

    code = "invalid-spec"


class BeyondHost(InvalidInput):
    code = "beyond-host"


class BadImage(InvalidInput):
    """A disk image is unusable. No part was kept.

    Details: output (the end of a checking program's output, if any).
    """

    code = "bad-image"


class BadBundle(InvalidInput):
    """A bundle is unusable. No part was kept."""

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
    """QEMU ended or never came up.

    Details: machine, exit_status or signal, qemu_stderr, console (the ends of both).
    """

    code = "machine-failed"


class SnapshotDamaged(MachineFailed):
    """The content of a snapshot differs from its checksums. Details: snapshot."""

    code = "snapshot-damaged"


class ProjectFailed(BoughError):
    """Machines of a project did not come up. What was made stays.

    Details: project, problems (place: the role), failures (role -> error), blocked (role -> the machine that
    it waits for), and output and console of the first failure.
    """

    code = "project-failed"
    http_status = 422


class QmpRefused(BoughError):
    """QEMU understood a command and refused it. Details: command, error_class."""

    code = "qemu-refused"


class QmpLost(BoughError):
    """QEMU ended, or sent something other than QMP. The command may have taken effect."""

    code = "qmp-lost"


class SwitchLost(BoughError):
    """The switch of a network has ended, or does not answer. The request may have taken effect."""

    code = "switch-lost"


class AgentUnavailable(BoughError):
    code = "agent-unavailable"
    http_status = 409


class AgentTimeout(AgentUnavailable):
    """The agent did not answer in time. The machine keeps running.

    Details: machine, timeout_s, console (its end).
    """

    code = "agent-timeout"
    http_status = 504


class BootFailed(BoughError):
    """The guest did not boot. The machine keeps running.

    Details: machine, seen (a kind of boot_signs.py), console (its end).
    """

    code = "boot-failed"
    http_status = 422


class GuestRefused(BoughError):
    """The guest answered with an error. Details: machine, errno (the name, if known)."""

    code = "guest-refused"
    http_status = 422


class CommandFailed(BoughError):
    """A command with `check` failed.

    Details: argv, exit_code or signal, stdout, stderr (the ends, as text).
    """

    code = "command-failed"


class CheckFailed(BoughError):
    """A guest is not as the caller requires, and a longer wait cannot help.

    Details: machine, output (of the check, its end).
    """

    code = "check-failed"
    http_status = 422


class BuildFailed(BoughError):
    """An image could not be built. Details: image, step, output (its end)."""

    code = "build-failed"


class DownloadFailed(BoughError):
    """A download failed. Details: url."""

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
    """Return the error that `to_dict()` described; an unknown code, of a newer version, becomes a plain
    BoughError.
    """
    cls = _tree(BoughError).get(str(data.get("code")), BoughError)
    error = cls(str(data.get("message", "unknown error")), hint=data.get("hint"))
    error.details = dict(data.get("details") or {})
    return error

"""Find the service of a BOUGH_HOME, or start it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bough.client.connection import Connection
from bough.contract.service import API_VERSION, GetVersion, ShutDown
from bough.errors import DeadlineExceeded, ServiceUnavailable
from bough.home import ANOTHER_SERVES
from bough.serving import Owner, read_owner
from bough.version import __version__

if TYPE_CHECKING:
    import subprocess

    from bough.paths import Home

#: Longest start of the service: without progress on a busy host, or in its own processor time.
START_TIMEOUT_S = 60.0
#: The end of the wait in any case.
START_MOST_S = 600.0
#: Longer than the service's wait for requests and for its own end.
_END_TIMEOUT_S = 30.0
#: A service binds a lost socket again within a second.
_REBIND_TIMEOUT_S = 5.0
_ASK_AGAIN_S = 0.05
LOG_BYTES = 4 * 1024 * 1024
_LOG_TAIL_BYTES = 4000


def find_service(home: Home, *, start: bool = True) -> tuple[Connection, dict[str, Any]]:
    """Return a connection to the service of `home`, and the service's answer to GET /v1/version.

    A silent home gets a new service. Two clients at once start a single service. An idle service of another
    version is replaced; machines go on. For a busy service of another version, this function warns.

    Raises:
        ServiceUnavailable: no service answers, and no service may or could be started.
    """
    connection = Connection(str(home.api_socket))
    try:
        version = connection.send(GetVersion())
    except ServiceUnavailable:
        owned = None if start else _await_owner(home, connection)
        if owned is None and not start:
            raise
        version = owned or _start_under_lock(home, connection)
    if version.get("version") != __version__ and start:
        version = _settle_versions(home, connection, version)
    return connection, version


def _settle_versions(home: Home, connection: Connection, version: dict[str, Any]) -> dict[str, Any]:
    if version.get("busy") == 0:
        end_service(connection)
        return _start_under_lock(home, connection)
    if version.get("api") != API_VERSION:
        raise ServiceUnavailable(
            f"the service of {home.root} is bough {version.get('version')}, which this {__version__} "
            "does not understand, and it is in use",
            hint="when no command uses the service, end it with `bough serve --stop`: machines go on",
        )
    import warnings

    warnings.warn(
        f"the service of {home.root} is bough {version.get('version')}, this is {__version__}; "
        "`bough serve --stop` ends it, the next command starts the new one, machines go on",
        stacklevel=3,
    )
    return version


def end_service(connection: Connection) -> None:
    """End the service, and wait until the process has ended and released the home. Machines go on.

    Raises:
        ServiceUnavailable: no service answers. DeadlineExceeded: the service got the request and still runs.
    """
    pid = int(connection.send(GetVersion())["pid"])
    try:
        process = os.pidfd_open(pid)
    except OSError:  # an invisible process, of another container
        process = None
    try:
        connection.send(ShutDown())
        connection.close()
        deadline = time.monotonic() + _END_TIMEOUT_S
        while _answers(connection):
            if time.monotonic() > deadline:
                raise _still_there(pid)
            time.sleep(0.02)
        left = max(0.0, deadline - time.monotonic())
        if process is not None and not select.select([process], [], [], left)[0]:
            raise _still_there(pid)
    finally:
        if process is not None:
            os.close(process)


def _answers(connection: Connection) -> bool:
    try:
        connection.send(GetVersion(), timeout=5)
    except ServiceUnavailable:
        return False
    except DeadlineExceeded:  # the service is busy with its end
        return True
    finally:
        connection.close()
    return True


def _still_there(pid: int) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the service (pid {pid}) got the request to end, and still runs after {_END_TIMEOUT_S:g} s",
        hint="service.log in BOUGH_HOME says what the service waits for",
    )


def _await_owner(home: Home, connection: Connection) -> dict[str, Any] | None:
    """Wait for the service that holds the home. Return the version answer; None: no service holds the home.

    Raises:
        ServiceUnavailable: a service holds the home, and was silent for longer than its work should take.
    """
    seen, since = None, time.monotonic()
    while (owner := read_owner(home.lock)) is not None:
        with contextlib.suppress(ServiceUnavailable):
            return dict(connection.send(GetVersion()))
        if owner != seen:
            seen, since = owner, time.monotonic()
        if time.monotonic() - since > (_END_TIMEOUT_S if owner.ends else _REBIND_TIMEOUT_S):
            raise _unheard(home, owner)
        time.sleep(_ASK_AGAIN_S)
    return None


def _unheard(home: Home, owner: Owner) -> ServiceUnavailable:
    socket = home.api_socket
    pid = f"pid {owner.pid}" if owner.pid else "of an unknown pid"
    what = (
        "got the request to end, and still runs" if owner.ends else f"does not listen at its socket {socket}"
    )
    kill = f"kill {'-9 ' if owner.ends else ''}{owner.pid or 'PID'}"
    return ServiceUnavailable(
        f"the service of {home.root} ({pid}) {what}",
        hint=f"`{kill}` ends it: machines go on, and the next command starts another; see {home.service_log}",
        socket=str(socket),
    )


def _start_under_lock(home: Home, connection: Connection) -> dict[str, Any]:
    import fcntl

    try:
        home.create()
    except OSError as error:
        raise ServiceUnavailable(
            f"cannot create {error.filename or home.root}: {error.strerror}",
            hint="set BOUGH_HOME to a directory of your own",
        ) from error
    # The kernel closes the file at the end of a client, so a dead client does not block other clients.
    lock = os.open(home.start_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another client may have started the service first.
        return _await_owner(home, connection) or _start(home, connection)
    finally:
        os.close(lock)


def _start(home: Home, connection: Connection) -> dict[str, Any]:
    deadline = time.monotonic() + START_TIMEOUT_S
    _bound_log(home.service_log)
    while True:
        begin = home.service_log.stat().st_size if home.service_log.exists() else 0
        process = _spawn(home)
        version = _wait_answer(connection, process)
        if version is not None:
            return version
        log = _read_from(home.service_log, begin)
        if process.poll() != ANOTHER_SERVES or time.monotonic() > deadline:
            break
        if (owned := _await_owner(home, connection)) is not None:
            return owned
        time.sleep(0.1)
    status = process.poll()
    what = f"it ended with status {status}" if status is not None else "it did not answer in time"
    if status is None:
        process.terminate()
    raise ServiceUnavailable(
        f"the service of {home.root} could not be started: {what}",
        hint=f"its log is {home.service_log}; `bough serve` runs it in the foreground",
        log=log,
    )


def command_of(home: Home) -> list[str]:
    """Return the command line that runs the service of `home`."""
    return [sys.executable, "-m", "bough.service", "--home", str(home.root)]


def _spawn(home: Home) -> subprocess.Popen[bytes]:
    import subprocess

    log = os.open(home.service_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            command_of(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise ServiceUnavailable(f"cannot run {sys.executable}: {error.strerror}") from error
    finally:
        os.close(log)


def _environment() -> dict[str, str]:
    """Return the environment for the service. A relative PYTHONPATH is made absolute: the service has another
    working directory.
    """
    environment = dict(os.environ)
    if environment.get("PYTHONPATH"):
        parts = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(str(Path.cwd() / part) for part in parts if part)
    return environment


def _wait_answer(connection: Connection, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """Wait for the service's first answer; None if the process has ended or makes no progress.

    The process outlives this program.
    """
    began, used_s = time.monotonic(), 0.0
    deadline = began + START_TIMEOUT_S
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        try:
            version = dict(connection.send(GetVersion(), timeout=max(0.1, deadline - time.monotonic())))
        except ServiceUnavailable:
            if ended:
                return None
            if used_s < (now_s := _processor_s(process.pid)) < START_TIMEOUT_S:
                used_s, deadline = now_s, min(time.monotonic() + START_TIMEOUT_S, began + START_MOST_S)
            time.sleep(0.01)
            continue
        # Popen would warn about a running child, but this child is meant to run on.
        process.returncode = 0
        return version
    return None


def _processor_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # the process has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5)


def _bound_log(path: Path) -> None:
    try:
        if path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    except FileNotFoundError:
        pass


def _read_from(path: Path, begin: int) -> str:
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(begin, end - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""

"""Operation first_boot: set a new machine up according to the spec.

Each step is independent: a failed step is reported, and the other steps still run. A finished step leaves a
mark on the disk, so a later call does only the remaining steps.
"""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH103, PTH110, PTH112, PTH123, PTH208

from __future__ import annotations

import os
import time

from bough.guest import agent_identity, agent_init
from bough.guest.agent_calls import OperationFailed, explain_error, list_of_text, run
from bough.guest.agent_facts import FIRST_BOOT_DONE
from bough.guest.agent_identity import write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bough.guest.agent_calls import Arguments, Tell

    Step = tuple[str, str, Callable[[], None]]  # mark, purpose and function of the step

_LONGEST_START_S = 120.0
#: A guest without an uplink gets no address.
_LONGEST_ADDRESS_S = 30.0
_LOOK_AGAIN_S = 0.5
#: A shutdown that takes longer is considered abandoned.
_LONGEST_STOP_S = 600.0
_MARKS = "/var/lib/bough/first-boot"
_INSTANCE = _MARKS + "/.instance"
_HOST_KEYS_SERVICE = "/etc/systemd/system/ssh-host-keys.service"
_MOST_FAILURES = 50
_FAILURE_OUTPUT = 2000


def first_boot(arguments: Arguments, tell: Tell) -> dict[str, object]:
    """Set the machine up. Arguments, all optional:

    {"instance", "hostname", "ssh_keys", "users", "environment", "files", "commands", "more"}
    -> {"instance", "outputs": [{"command", "output"}], "failures": [{"step", "message", "output"}]}.

    With `more`, the call stops before the commands, and another call follows. Another `instance` than in the
    last call means another machine on a copy of the disk: all steps are done for that machine. `outputs` has
    the output of the commands run by this call.
    """
    instance = str(arguments.get("instance") or "")
    outputs: list[dict[str, object]] = []
    failures: list[dict[str, object]] = []
    done: dict[str, object] = {"instance": instance, "outputs": outputs, "failures": failures}
    if os.path.exists(FIRST_BOOT_DONE) and _is_of(FIRST_BOOT_DONE, instance):
        return done
    _wait_until_writable()
    _begin(instance)
    for mark, what, action in _steps(arguments):
        tell(f"setting up: {what}", None, "")
        _attempt(mark, what, action, failures)
    if arguments.get("more"):
        return done
    _run_commands(list_of_text(arguments.get("commands")), tell, outputs, failures)
    if not failures:
        write_file(FIRST_BOOT_DONE, instance.encode())
    os.sync()
    return done


def _is_of(path: str, instance: str) -> bool:
    """Return whether the file is of the instance. A missing or empty file fits every instance."""
    if not os.path.exists(path):
        return True
    with open(path, "rb", buffering=0) as file:
        return file.read(200) in (b"", instance.encode()) or not instance


def _wait_until_writable() -> None:
    """Wait while the boot has not made the root file system writable yet. A root may stay read-only."""
    from bough.guest import agent_uplink

    if agent_init.find_init() == agent_init.SYSTEMD:
        return  # bough-agent.service starts after the remount
    deadline = time.monotonic() + _LONGEST_START_S
    while os.statvfs("/").f_flag & os.ST_RDONLY and not agent_uplink.is_boot_over():
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_AGAIN_S)


def _begin(instance: str) -> None:
    """Forget the steps that were done for another machine."""
    if instance and os.path.isdir(_MARKS):
        known = os.path.exists(_INSTANCE)
        if not _is_of(_INSTANCE if known else FIRST_BOOT_DONE, instance):
            for name in os.listdir(_MARKS):
                os.unlink(f"{_MARKS}/{name}")  # noqa: PTH108
    os.makedirs(_MARKS, exist_ok=True)
    write_file(_INSTANCE, instance.encode())


def _attempt(mark: str, what: str, action: Callable[[], None], failures: list[dict[str, object]]) -> bool:
    """Return whether the step is done, now or earlier."""
    path = f"{_MARKS}/{mark}"
    if os.path.exists(path):
        return True
    try:
        action()
        os.sync()  # the step's result must be on the disk before the mark
        write_file(path, b"")
    except Exception as error:  # any error: the host reports it to the user
        told = explain_error(error)
        if len(failures) < _MOST_FAILURES:
            output = str(told.get("output") or "")[-_FAILURE_OUTPUT:]
            failures.append({"step": what, "message": told["message"], "output": output})
        return False
    return True


def _steps(arguments: Arguments) -> Iterator[Step]:
    """Yield all steps except the commands, in order."""
    hostname = arguments.get("hostname")
    if hostname:
        yield "hostname", "the host name", lambda: agent_identity.set_hostname(str(hostname))
    for user in _tables(arguments.get("users")):
        name = str(user.get("name"))
        yield f"user-{name.replace('/', '-')}", f"user {name}", lambda user=user: _make_user(user)  # type: ignore[misc]
    keys = list_of_text(arguments.get("ssh_keys"))
    if keys:
        yield "ssh_keys", "the ssh keys of root", lambda: agent_identity.authorize_keys("root", keys)
    if arguments.get("environment"):
        yield "environment", "the environment", lambda: _environment(arguments["environment"])
    for number, file in enumerate(_tables(arguments.get("files"))):
        yield f"file-{number}", f"file {file.get('path')}", lambda file=file: _write(file)  # type: ignore[misc]
    if not os.path.exists(_HOST_KEYS_SERVICE):
        yield "host_keys", "the host keys of ssh", agent_identity.make_host_keys


def _tables(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _make_user(user: dict[str, object]) -> None:
    from bough.guest.agent_users import has_program, make_user

    name = str(user["name"])
    make_user(name, str(user.get("shell") or ""), list_of_text(user.get("groups")))
    if user.get("sudo"):
        file = f"90-bough-{name.replace('.', '-')}"
        line = f"{name} ALL=(ALL:ALL) NOPASSWD: ALL\n"
        write_file(f"/etc/sudoers.d/{file}", line.encode(), mode=0o440)
        if has_program("doas"):
            write_file(f"/etc/doas.d/{file}.conf", f"permit nopass {name}\n".encode(), mode=0o600)
    agent_identity.authorize_keys(name, list_of_text(user.get("ssh_keys")))


def _environment(value: object) -> None:
    wanted = {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}
    lines = []
    if os.path.exists("/etc/environment"):
        with open("/etc/environment", encoding="utf-8", errors="surrogateescape") as file:
            lines = [
                line for line in file.read().splitlines() if line.partition("=")[0].strip() not in wanted
            ]
    for key, item in wanted.items():
        if "\n" in item:
            raise OperationFailed(f"the environment variable {key} has more than one line")
        lines.append(
            f'{key}="{item}"' if item != item.strip() or "#" in item or not item else f"{key}={item}"
        )
    write_file("/etc/environment", ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def _write(file: dict[str, object]) -> None:
    content = file["content"]
    if isinstance(content, str):
        from binascii import a2b_base64

        content = a2b_base64(content)
    if not isinstance(content, bytes):
        raise OperationFailed("the content of the file is neither text nor bytes")
    mode = file.get("mode") or 0o644
    owner = _owner(str(file.get("owner") or "root"))
    write_file(
        str(file["path"]),
        content,
        mode=int(mode, 8) if isinstance(mode, str) else int(str(mode)),
        owner=owner,
    )


def _owner(text: str) -> tuple[int, int]:
    from bough.guest.agent_login import Identity

    identity = Identity(text)
    return identity.uid, identity.gid


def _wait_system_up() -> None:
    """Wait until services and network are up, as commands expect. A hanging service does not block the
    commands forever.
    """
    end = time.monotonic() + _LONGEST_START_S
    while _state() == agent_init.STARTING and time.monotonic() < end:
        time.sleep(_LOOK_AGAIN_S)
    if os.path.isdir("/run/systemd/netif"):
        if len(os.listdir("/sys/class/net")) > 1:
            run(["/usr/lib/systemd/systemd-networkd-wait-online", "--any", "--timeout=30"])
        return
    from bough.guest.agent_uplink import is_online

    end = min(end, time.monotonic() + _LONGEST_ADDRESS_S)
    while not is_online() and time.monotonic() < end:
        time.sleep(_LOOK_AGAIN_S)


def _state() -> str:
    if agent_init.find_init() != agent_init.SYSTEMD:
        return agent_init.find_state()
    # Without --wait: the option needs the message bus, and the bus may not be up.
    state = run(["systemctl", "is-system-running"])[1].strip()
    return agent_init.STARTING if state in ("initializing", "starting", "offline") else state


def _wait_while_stopping() -> None:
    """Wait while the system shuts down: a command, or cloud-init's power_state, may cause a reboot.

    The remaining steps follow after the reboot. A command that the shutdown kills has not failed. The
    shutdown ends this process too.
    """
    end = time.monotonic() + _LONGEST_STOP_S
    while _state() == agent_init.STOPPING and time.monotonic() < end:
        time.sleep(_LOOK_AGAIN_S)


def _run_commands(
    commands: list[str], tell: Tell, outputs: list[dict[str, object]], failures: list[dict[str, object]]
) -> None:
    """Run the commands in order and stop at the first failure: a command may need the results of earlier
    ones.
    """
    if commands:
        tell("waiting for the system to be up", None, "")
        _wait_system_up()
    for at, command in enumerate(commands):
        tell(f"running command {at + 1} of {len(commands)}", at / len(commands), command[:200])
        _wait_while_stopping()

        def once(command: str = command) -> None:
            home = "/root" if os.path.isdir("/root") else "/"
            code, output = run(["/bin/sh", "-c", command], directory=home)
            if code:
                _wait_while_stopping()
                raise OperationFailed(f"{command[:200]} ended with {code}", output)
            outputs.append({"command": command[:200], "output": output[-8000:]})

        left = len(commands) - at - 1
        what = f"command {at + 1}" + (f" (the {left} after it did not run)" if left else "")
        if not _attempt(f"command-{at}", what, once, failures):
            return

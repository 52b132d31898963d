"""Operation first_boot: what a new machine was asked to be.

Each step leaves a mark when it is done and on disk, so that one that was cut off goes on where it was.
"""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH103, PTH110, PTH112, PTH123, PTH208

from __future__ import annotations

import os
import time

from bough.guest import agent_identity
from bough.guest.agent_calls import OperationFailed, list_of_text, run, run_or_fail
from bough.guest.agent_facts import FIRST_BOOT_DONE
from bough.guest.agent_identity import write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bough.guest.agent_calls import Arguments, Tell

_LONGEST_START_S = 120.0
_MARKS = "/var/lib/bough/first-boot"


def first_boot(arguments: Arguments, tell: Tell) -> dict[str, object]:
    """{"hostname", "ssh_keys", "users", "environment", "files", "commands", "more"}, each optional.

    With `more` it stops before the commands, to be called again.

    -> {"outputs": [{"command", "output"}]} of the commands that were run by this call.
    """
    if os.path.exists(FIRST_BOOT_DONE):
        return {"outputs": []}
    os.makedirs(_MARKS, exist_ok=True)
    for name, step in _STEPS.items():
        if arguments.get(name):
            tell(f"setting up: {name.replace('_', ' ')}", None, "")
            _once(name, lambda step=step, name=name: step(arguments[name]))  # type: ignore[misc]
    if not os.path.exists("/etc/systemd/system/ssh-host-keys.service"):
        _once("host_keys", agent_identity.make_host_keys)
    if arguments.get("more"):
        return {"outputs": []}
    outputs = _run_commands(list_of_text(arguments.get("commands")), tell)
    write_file(FIRST_BOOT_DONE, b"")
    os.sync()
    return {"outputs": outputs}


def _once(name: str, action: Callable[[], None]) -> bool:
    """Whether it was done now."""
    mark = f"{_MARKS}/{name}"
    if os.path.exists(mark):
        return False
    action()
    os.sync()  # what was done must not be missing when its mark is there
    write_file(mark, b"")
    return True


def _hostname(value: object) -> None:
    agent_identity.set_hostname(str(value))


def _root_keys(value: object) -> None:
    agent_identity.authorize_keys("root", list_of_text(value))


def _users(value: object) -> None:
    for user in value if isinstance(value, list) else ():
        _make_user(user)


def _make_user(user: dict[str, object]) -> None:
    import pwd

    name = str(user["name"])
    groups = list_of_text(user.get("groups"))
    for group in groups:
        run_or_fail(["groupadd", "--force", group])
    options = ["--groups", ",".join(groups)] if groups else []
    shell = user.get("shell")
    if not shell:
        shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    try:
        pwd.getpwnam(name)
        if groups:
            run_or_fail(["usermod", "--append", *options, name])
    except KeyError:
        # "*": no password fits, yet it is not locked, which sshd would take as no login at all.
        run_or_fail(["useradd", "--create-home", "--shell", str(shell), "--password", "*", *options, name])
    if user.get("sudo"):
        line = f"{name} ALL=(ALL:ALL) NOPASSWD: ALL\n"
        write_file(f"/etc/sudoers.d/90-bough-{name.replace('.', '-')}", line.encode(), mode=0o440)
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


def _files(value: object) -> None:
    for file in value if isinstance(value, list) else ():
        content = file["content"]
        if isinstance(content, str):
            from binascii import a2b_base64

            content = a2b_base64(content)
        mode = file.get("mode") or 0o644
        owner = _owner(str(file.get("owner") or "root"))
        write_file(
            str(file["path"]), content, mode=int(mode, 8) if isinstance(mode, str) else mode, owner=owner
        )


def _owner(text: str) -> tuple[int, int]:
    from bough.guest.agent_login import Identity

    identity = Identity(text)
    return identity.uid, identity.gid


def _wait_system_up() -> None:
    """Commands expect services and a network; what hangs is not to keep them for ever."""
    end = time.monotonic() + _LONGEST_START_S
    # Not with --wait, which needs the message bus, and that may not be up itself.
    while run(["systemctl", "is-system-running"])[1].strip() in ("initializing", "starting", "offline"):
        if time.monotonic() > end:
            return
        time.sleep(0.5)
    if os.path.isdir("/run/systemd/netif") and len(os.listdir("/sys/class/net")) > 1:
        run(["/usr/lib/systemd/systemd-networkd-wait-online", "--any", "--timeout=30"])


def _run_commands(commands: list[str], tell: Tell) -> list[dict[str, object]]:
    outputs: list[dict[str, object]] = []
    if commands and os.path.isdir("/run/systemd/system"):
        tell("waiting for the system to be up", None, "")
        _wait_system_up()
    for at, command in enumerate(commands):
        tell(f"running command {at + 1} of {len(commands)}", at / len(commands), command[:200])

        def once(at: int = at, command: str = command) -> None:
            code, output = run(["/bin/sh", "-c", command], directory="/root")
            if code:
                raise OperationFailed(
                    f"first-boot command {at + 1} ({command[:200]}) ended with {code}", output
                )
            outputs.append({"command": command[:200], "output": output[-8000:]})

        _once(f"command-{at}", once)
    return outputs


_STEPS = {
    "hostname": _hostname,
    "users": _users,
    "ssh_keys": _root_keys,
    "environment": _environment,
    "files": _files,
}

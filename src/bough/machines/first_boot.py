"""Set up a new machine at the agent's first answer: identity, users, files, commands of the spec."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from bough.errors import BoughError, DeadlineExceeded, GuestRefused
from bough.guest.channel import AgentChannel
from bough.guest.facts import clean_name, clean_text
from bough.guest.qga import QgaChannel
from bough.guest.session import ExecRequest, ExitStatus
from bough.machines.record import FirstBoot, MachineRecord
from bough.progress_watch import ProgressWatch, Stalled

#: Commands of the first boot may install packages in an emulated guest.
COMMANDS_TIMEOUT_S = 3600.0
CLOUD_INIT_TIMEOUT_S = 1800.0
INSTALL_TIMEOUT_S = 600.0
#: Enough for an emulated guest with a large disk on a busy host.
GROW_TIMEOUT_S = 1800.0
#: cloud-init's power_state reboots after cloud-init's last process has ended, by a process of the same name.
#: The rest of the first boot follows after the reboot.
_WAIT_CLOUD_INIT = r"""
cloud-init status --wait --long
status=$?
n=0
ends() { grep -qsa -e 'cloud-ini[t].\(modules\|--all-stages\)' -e '^shutdow[n].' /proc/[0-9]*/cmdline; }
while [ $n -lt 300 ] && ends; do sleep 0.2; n=$((n + 1)); done
while [ "$(systemctl is-system-running 2>/dev/null)" = stopping ]; do sleep 0.5; done
exit $status
"""
_MOST_WAITS = 30
_WAITS_EVERY_S = 2.0
_MOST_FAILURES = 50
_MOST_OUTPUT = 2000
_OLD_AGENT = (
    "the agent on this disk is from an older bough and has set up another machine: users, keys, files and "
    "commands of the spec were not set up"
)
_INSTALL_SSHFS = """
command -v sshfs >/dev/null && exit 0
if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q install -y --no-install-recommends sshfs ||
        { apt-get -q update && apt-get -q install -y --no-install-recommends sshfs; }
elif command -v dnf >/dev/null; then dnf -q -y install fuse-sshfs
elif command -v zypper >/dev/null; then zypper -q -n install sshfs
elif command -v apk >/dev/null; then apk add sshfs
elif command -v pacman >/dev/null; then pacman -Sy --noconfirm sshfs
fi
"""


async def set_up_guest(
    channel: AgentChannel, record: MachineRecord, mount: Callable[[], Awaitable[None]]
) -> FirstBoot:
    """Grow the root file system, then set up users, keys, files, environment, mounts and commands.

    Each step runs even if others failed; the result names the failed steps. The agent remembers completed
    steps. A machine that dies in the middle continues with the next step, and a failed step is tried again at
    the next start.

    Raises:
        AgentUnavailable: the agent stopped answering in the middle; call again when it answers.
    """
    failures = Failures()
    if record.media.seed:
        await _wait_cloud_init(channel, failures)
    with failures.of("growing the root file system"):
        await channel.call("grow_root", {}, timeout_s=GROW_TIMEOUT_S)
    wanted = render_first_boot(record)
    if record.spec.mounts:
        # After the users, because users may own mounts; before the commands, because commands may need
        # mounts.
        if await _knows_mounts(channel):
            with failures.of("setting up"):
                await channel.call("first_boot", {**wanted, "more": True}, timeout_s=COMMANDS_TIMEOUT_S)
        if record.media.seed:
            await _install_sshfs(channel)
        await mount()
    with failures.of("setting up"):
        failures.add_told(await channel.call("first_boot", wanted, timeout_s=COMMANDS_TIMEOUT_S), record)
    return failures.result(record.first_boot)


class Failures:
    """The failed steps of a first boot, with one untrusted text of the guest for each step."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    @contextlib.contextmanager
    def of(self, step: str) -> Iterator[None]:
        try:
            yield
        except GuestRefused as error:
            self.add(step, error.message, str(error.details.get("output", "")))

    def add(self, step: str, message: str, output: str = "") -> None:
        output = clean_text(output.strip()[-_MOST_OUTPUT:])
        text = f"{clean_name(step)}: {clean_text(message)}"
        if len(self._texts) < _MOST_FAILURES:
            self._texts[clean_name(step)] = f"{text}\n{output}" if output else text

    def add_told(self, answer: dict[str, Any], record: MachineRecord) -> None:
        """Add the failed steps from the agent's answer. An agent of an older bough reports one error for all
        steps.
        """
        told = answer.get("failures")
        for failure in told if isinstance(told, list) else ():
            if isinstance(failure, dict):
                words = (str(failure.get(key, "")) for key in ("step", "message", "output"))
                self.add(*words)
        instance = record.first_boot.instance
        if record.media.lived and answer.get("instance") != instance:
            self.add("setting up", _OLD_AGENT)

    def result(self, before: FirstBoot) -> FirstBoot:
        failed = list(self._texts)
        error = "\n".join(self._texts.values()) or None
        return before.model_copy(update={"done": True, "failed": failed, "error": error})


def first_boot_error(record: MachineRecord) -> GuestRefused | None:
    """Return the error for callers that wait for a machine with an incomplete setup, or None."""
    name = record.name
    if record.first_boot.error:
        return GuestRefused(
            f"machine '{name}' runs, but its first boot did not finish: {record.first_boot.error}",
            hint=f"look inside with `bough shell {name}`; try the failed steps again: bough restart {name}",
            machine=name,
        )
    if record.identity_error:
        return GuestRefused(
            f"machine '{name}' runs, but {record.identity_error}",
            hint=f"look inside with `bough shell {name}`; try again: bough restart {name}",
            machine=name,
        )
    return None


def tried_again(record: MachineRecord) -> dict[str, Any]:
    """Return record fields that make the next boot try failed steps again."""
    fields: dict[str, Any] = {}
    if record.first_boot.error:
        fields["first_boot"] = record.first_boot.model_copy(update={"done": False})
    if record.identity_error:
        fields["identity"] = "new"
    return fields


async def _knows_mounts(channel: AgentChannel) -> bool:
    """Return whether the agent knows mounts. An older agent ignores `more` and would end the setup."""
    try:
        await channel.call("set_mounts", {"mounts": []}, timeout_s=60)
    except GuestRefused:
        return False
    return True


async def _install_sshfs(channel: AgentChannel) -> None:
    """Install sshfs, which cloud images lack. A failure is reported when a mount needs sshfs."""
    with contextlib.suppress(BoughError):
        await run_script(channel, _INSTALL_SSHFS, timeout_s=INSTALL_TIMEOUT_S)


async def run_script(
    channel: AgentChannel | QgaChannel,
    script: str,
    *,
    timeout_s: float = 300,
    watch: ProgressWatch | None = None,
) -> str:
    """Return the output of a shell script in the guest: untrusted, the first MiB.

    Args:
        timeout_s: guest time without a sign of progress.
        watch: bound of the wait, instead of `timeout_s`.

    Raises:
        DeadlineExceeded: the wait ended, and the script was stopped.
        AgentUnavailable: the agent stopped answering.
    """
    session = await channel.exec(ExecRequest(["/bin/sh", "-c", script], stdin=False))
    heard = bytearray()

    async def listen() -> None:
        async for stream, data in session:
            if stream == "stdout":
                heard.extend(data[: 1024 * 1024 - len(heard)])

    try:
        await (watch or channel.patience(timeout_s)).run(listen())
    except Stalled as stalled:
        raise DeadlineExceeded(f"the guest was not done {stalled}") from None
    finally:
        await session.abort()  # no effect if the script has ended
    return heard.decode(errors="replace")


async def _wait_cloud_init(channel: AgentChannel, failures: Failures) -> None:
    """Wait until cloud-init has set up the guest. Both setups at once would conflict."""
    with failures.of("cloud-init"):
        for _ in range(_MOST_WAITS):
            exit_status, said = await _listen_to_cloud_init(channel)
            if exit_status is None:
                failures.add("cloud-init", "it stopped making progress")
                return
            if exit_status.error is not None:
                raise exit_status.error
            if exit_status.signal is not None:
                await asyncio.sleep(_WAITS_EVERY_S)  # a shutdown ended the wait; the agent will end soon, too
                continue
            # 2: all is done with a warning, such as a deprecated key.
            if exit_status.code not in (0, 2):
                failures.add("cloud-init", f"exit status {exit_status.code}", said)
            return


async def _listen_to_cloud_init(channel: AgentChannel) -> tuple[ExitStatus | None, str]:
    """Return the exit status of the wait, and cloud-init's own report. The status is None
    without progress.
    """
    session = await channel.exec(ExecRequest(["/bin/sh", "-c", _WAIT_CLOUD_INIT], stdin=False))
    said = bytearray()

    async def listen() -> None:
        async for _, data in session:
            said.extend(data[: _MOST_OUTPUT - len(said)])

    try:
        await channel.patience(CLOUD_INIT_TIMEOUT_S).run(listen())
    except Stalled:
        await session.abort()
        return None, ""
    return session.exit, said.decode(errors="replace")


def render_first_boot(record: MachineRecord) -> dict[str, Any]:
    spec = record.spec
    return {
        "instance": record.first_boot.instance or "",
        "hostname": record.hostname,
        "ssh_keys": list(spec.ssh_keys),
        "users": [user.model_dump(mode="json") for user in spec.users],
        "environment": dict(spec.environment),
        "files": [
            {
                "path": file.path,
                "content": base64.b64encode(file.data).decode(),
                "mode": file.mode,
                "owner": file.owner,
            }
            for file in spec.files
        ],
        "commands": list(spec.commands),
    }

"""The guest's init: which program is process 1, whether the boot has ended, and an orderly end.

Each init has other signs. An unknown init tells nothing, and the answer is then "unknown".
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH110, PTH112, PTH115, PTH119, PTH123, PTH208

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Words = list[bytes]

SYSTEMD, OPENRC_INIT, SYSVINIT, BUSYBOX, RUNIT = "systemd", "openrc-init", "sysvinit", "busybox", "runit"
#: bough's own init (agent_init_process.py).
BOUGH = "bough"
UNKNOWN = "unknown"
STARTING, RUNNING, STOPPING, MAINTENANCE = "starting", "running", "stopping", "maintenance"

#: Names of programs that are process 1 -> the name of the init here.
_PROGRAMS = {
    **dict.fromkeys(("openrc-init", "busybox", "runit", "dinit"), ""),
    "s6-svscan": "s6",
    "runit-init": RUNIT,
    "toybox": UNKNOWN,
}
#: A runlevel record of utmp(5): its type, its size with 64-bit and with 32-bit times.
_RUN_LEVEL = 1
_RECORD_BYTES = (384, 400)
_MOST_RECORDS = 200
#: Scripts that sysvinit runs on the way to a runlevel.
_RUNLEVEL_SCRIPTS = (b"/etc/init.d/rc", b"/etc/init.d/rcS", b"/lib/init/rc", b"/etc/rc.d/rc", b"startpar")
#: Entries of busybox's inittab that end before the first service starts.
_BUSYBOX_BOOT = (b"sysinit", b"wait")
_MOST_CHILDREN = 2000

_SYSTEMD_SIGNALS = {"poweroff": 38, "reboot": 39}  # SIGRTMIN+4 and +5 of the C library
_BUSYBOX_SIGNALS = {"poweroff": 12, "reboot": 15}  # SIGUSR2, SIGTERM
_COMMANDS = {
    SYSVINIT: {"poweroff": "shutdown -h -P now", "reboot": "shutdown -r now"},
    OPENRC_INIT: {"poweroff": "openrc-shutdown --poweroff now", "reboot": "openrc-shutdown --reboot now"},
    RUNIT: {"poweroff": "init 0", "reboot": "init 6"},
}
#: Tried after the command of the init.
_COMMON = {
    "poweroff": ("poweroff", "shutdown -h now", "halt -p"),
    "reboot": ("reboot", "shutdown -r now"),
}
_KERNEL_COMMANDS = {"poweroff": 0x4321FEDC, "reboot": 0x01234567}  # reboot(2)


def find_init(root: str = "") -> str:
    """Return the name of process 1: "bough", "systemd", "openrc-init", "sysvinit", "busybox", "runit", "s6",
    "dinit", or "unknown".

    Args:
        root: directory of a guest's files, for tests.
    """
    # First: an image may contain directories of /run.
    if b"agent_init_process import main" in _read(root + "/proc/1/cmdline"):
        return BOUGH
    if os.path.isdir(root + "/run/systemd/system"):
        return SYSTEMD
    try:
        name = os.path.basename(os.readlink(root + "/proc/1/exe"))
    except OSError:
        return UNKNOWN
    name = name.replace(" (deleted)", "")
    if name == "init" and os.path.exists(root + "/etc/inittab"):
        return SYSVINIT
    return _PROGRAMS.get(name, UNKNOWN) or name


def find_state(root: str = "") -> str:
    """Return "starting", "running", "stopping", "maintenance", or "unknown".

    "running": the default runlevel is reached (OpenRC, sysvinit), or init has run all steps of the boot and
    keeps services alive (busybox, runit). systemd is asked by its own tool, not here.
    """
    init = find_init(root)
    if init == BOUGH:
        return RUNNING  # the agent is its first service
    level = _openrc_level(root)
    if level is not None and init in (SYSVINIT, BUSYBOX, OPENRC_INIT):
        return level
    if init == SYSVINIT:
        return _sysvinit_state(root)
    if init == BUSYBOX:
        return _busybox_state(root)
    if init == RUNIT:
        return _runit_state(root)
    return UNKNOWN


# -- signs of the boot ------------------------------------------------------------------------------


def _openrc_level(root: str) -> str | None:
    """Return the state told by OpenRC's files; None without OpenRC.

    `openrc` keeps the directory rc.starting or rc.stopping while a runlevel begins or ends, and writes the
    name of the runlevel between the two.
    """
    place = root + "/run/openrc"
    if not os.path.isdir(place):
        return None
    level = _read(place + "/softlevel").strip()
    if level in (b"shutdown", b"reboot", b"off"):
        return STOPPING
    if level in (b"single", b"recovery"):
        return MAINTENANCE
    changes = os.path.exists(place + "/rc.starting") or os.path.exists(place + "/rc.stopping")
    return STARTING if changes or level in (b"", b"sysinit", b"boot") else RUNNING


def _sysvinit_state(root: str) -> str:
    """Return the state: init records a runlevel when its scripts begin, and runs nothing else meanwhile."""
    runs_scripts = any(
        word.endswith(script) for words in _children_of_init(root) for word in words[:3]
        for script in _RUNLEVEL_SCRIPTS
    )  # fmt: skip
    level = _recorded_level(root)
    if level in ("0", "6"):
        return STOPPING
    if runs_scripts:
        return STARTING
    if level is None:
        return UNKNOWN
    return MAINTENANCE if level in "1Ss" else RUNNING


def _recorded_level(root: str) -> str | None:
    """Return the last runlevel of utmp; None: none is recorded."""
    records = _read(root + "/run/utmp", 400 * _MOST_RECORDS)
    size = next((one for one in _RECORD_BYTES if records and len(records) % one == 0), _RECORD_BYTES[0])
    level = None
    for at in range(0, len(records) - size + 1, size):
        if int.from_bytes(records[at : at + 2], "little") == _RUN_LEVEL:
            level = chr(records[at + 4])  # the pid's low byte is the level, the next one the level before
    return level


def _busybox_state(root: str) -> str:
    """Return the state: init runs the entries of the boot one after the other, before all services."""
    steps = set()
    for line in _read(root + "/etc/inittab").splitlines() or [b"::sysinit:/etc/init.d/rcS"]:
        fields = line.strip().split(b":", 3)
        if len(fields) == 4 and fields[2] in _BUSYBOX_BOOT and fields[3].strip():
            steps.add(fields[3].split()[0].lstrip(b"-").rpartition(b"/")[2])
    children = _children_of_init(root)
    runs = any(word.rpartition(b"/")[2] in steps for words in children for word in words[:3])
    return STARTING if runs else RUNNING


def _runit_state(root: str) -> str:
    """Return the state: stage 2 becomes runsvdir, stage 3 is the shutdown."""
    children = list(_children_of_init(root))
    if any(word.endswith(b"runit/3") for words in children for word in words[:3]):
        return STOPPING
    return RUNNING if any(words[0].endswith(b"runsvdir") for words in children) else STARTING


def _children_of_init(root: str) -> Iterator[Words]:
    """Yield the command lines of the children of process 1. Kernel threads have none."""
    for pid in _pids_of_children(root):
        words = _read(f"{root}/proc/{pid}/cmdline").split(b"\0")
        if words[0]:
            yield words


def _pids_of_children(root: str) -> Iterator[str]:
    listed = _read(root + "/proc/1/task/1/children")
    if listed:
        yield from listed.decode("ascii", "replace").split()[:_MOST_CHILDREN]
        return
    # A kernel without CONFIG_PROC_CHILDREN.
    for name in os.listdir(root + "/proc"):
        if name.isdigit():
            fields = _read(f"{root}/proc/{name}/stat", 1024).rpartition(b")")[2].split()
            if fields[1:2] == [b"1"]:
                yield name


def _read(path: str, most: int = 65536) -> bytes:
    """Return the file's content; empty if the file cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(most)
    except OSError:
        return b""


# -- the end ----------------------------------------------------------------------------------------


def begin_end(what: str) -> None:
    """Begin an orderly shutdown. `what` is "poweroff" or "reboot". Return at once.

    The command of the init comes first. Without any working command the kernel ends the guest, after a sync.
    """
    init = find_init()
    signals = {SYSTEMD: _SYSTEMD_SIGNALS, BUSYBOX: _BUSYBOX_SIGNALS, BOUGH: _BUSYBOX_SIGNALS}.get(init)
    if signals is not None:
        os.kill(1, signals[what])
        return
    if os.fork() == 0:
        try:
            from bough.guest.agent_calls import leave_agent

            leave_agent()
            if not end_by_command(ending_commands(init, what)):
                _end_by_kernel(what)
        finally:
            os._exit(0)


def ending_commands(init: str, what: str) -> list[list[str]]:
    """Return the commands to try, in order."""
    own = _COMMANDS.get(init, {}).get(what)
    return [command.split() for command in ((own,) if own else ()) + _COMMON[what]]


def end_by_command(commands: list[list[str]]) -> bool:
    """Run the commands until one succeeds. Return whether one did."""
    from bough.guest.agent_calls import run

    for words in commands:
        try:
            if run(words)[0] == 0:
                return True
        except OSError:
            continue  # the guest lacks this command
    return False


def _end_by_kernel(what: str) -> None:
    import _ctypes

    os.sync()
    reboot = _ctypes.dlsym(_ctypes.dlopen(None, 0), "reboot")  # type: ignore[arg-type]
    _ctypes.call_function(reboot, (_KERNEL_COMMANDS[what],))

"""Facts about the guest for the answer to a hello."""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH110, PTH123

from __future__ import annotations

import os
import time

from bough.guest import agent_init, agent_python

_ROOT_FACTS: dict[str, object] = {}
FIRST_BOOT_DONE = "/var/lib/bough/first-boot.done"


def gather() -> dict[str, object]:
    if not _ROOT_FACTS:
        _ROOT_FACTS["boot_id"] = read_boot_id()
        _ROOT_FACTS["os_release"] = _os_release()
        _ROOT_FACTS["init"] = agent_init.find_init()
        _ROOT_FACTS["own_programs"] = agent_python.PRIVATE
    system = os.uname()
    facts: dict[str, object] = {
        "hostname": system.nodename,
        "kernel": system.release,
        "machine": system.machine,
        "first_boot_done": os.path.exists(FIRST_BOOT_DONE),
        "pid": os.getpid(),
        # The value of /proc/uptime, without the kernel code that formats that file.
        "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME),
    }
    facts.update(_ROOT_FACTS)
    return facts


def read_boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(4096).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _os_release() -> dict[str, str]:
    wanted = ("ID", "VERSION_ID", "VERSION_CODENAME", "PRETTY_NAME")
    text = _read("/etc/os-release") or _read("/usr/lib/os-release")
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value.strip("\"'") for key, _, value in pairs if key in wanted}

"""Operations on the running system: clock, entropy, load, power."""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH123

from __future__ import annotations

import os
import time

from bough.guest import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent_calls import Agent, Arguments


def set_clock(_agent: Agent, _call: int, arguments: Arguments) -> dict[str, object]:
    """Set the clock. {"unix_ns": the time, plus the delay of this call} -> {"stepped_ns": the
    clock's error}.
    """
    wanted = arguments.get("unix_ns")
    if not isinstance(wanted, int):
        raise OSError(22, "expected unix_ns")
    before = time.clock_gettime_ns(time.CLOCK_REALTIME)
    time.clock_settime_ns(time.CLOCK_REALTIME, wanted)
    return {"stepped_ns": wanted - before}


def add_entropy(_agent: Agent, _call: int, arguments: Arguments) -> dict[str, object]:
    """Add entropy to the kernel's pool and reseed the generator. {"data": up to 512 secret bytes}."""
    from bough.guest.agent_become import stir

    data = arguments.get("data")
    if not isinstance(data, bytes) or not 0 < len(data) <= 512:
        raise OSError(22, "expected 1 to 512 bytes")
    stir(data)
    return {}


def load(_agent: Agent, _call: int, _arguments: Arguments) -> dict[str, object]:
    """Return figures from the guest's kernel, in bytes and seconds."""
    memory = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        memory[name] = int(rest.split()[0]) * 1024
    one, five, fifteen, tasks = _read("/proc/loadavg").split()[:4]
    ticks = os.sysconf("SC_CLK_TCK")
    cpu = [int(part) / ticks for part in _read("/proc/stat").partition("\n")[0].split()[1:9]]
    root = os.statvfs("/")
    return {
        "memory_total_bytes": memory.get("MemTotal"),
        "memory_available_bytes": memory.get("MemAvailable"),
        "memory_free_bytes": memory.get("MemFree"),
        "memory_cached_bytes": memory.get("Cached"),
        "swap_total_bytes": memory.get("SwapTotal"),
        "swap_free_bytes": memory.get("SwapFree"),
        "load_1": float(one),
        "load_5": float(five),
        "load_15": float(fifteen),
        "tasks": int(tasks.partition("/")[2]),
        "cpus": os.cpu_count() or 1,
        "cpu_busy_s": sum(cpu) - cpu[3] - cpu[4],
        "cpu_idle_s": cpu[3] + cpu[4],
        "uptime_s": float(_read("/proc/uptime").split()[0]),
        "root_total_bytes": root.f_blocks * root.f_frsize,
        "root_free_bytes": root.f_bavail * root.f_frsize,
    }


def power_off(agent: Agent, call: int, _arguments: Arguments) -> None:
    """Begin an orderly power-off. The answer comes at once."""
    agent.send_values(wire.RESULT, call, {})
    from bough.guest import agent_init

    agent_init.begin_end("poweroff")


def reboot(agent: Agent, call: int, _arguments: Arguments) -> None:
    agent.send_values(wire.RESULT, call, {})
    from bough.guest import agent_init

    agent_init.begin_end("reboot")


def _read(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return file.read(65536).decode("ascii", "replace")

"""What a failed test leaves: a directory with the state of its machines and the record of its steps."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bough.errors import BoughError
from bough.pytest_plugin.recording import Step, plain_text

if TYPE_CHECKING:
    from bough.client.connection import Connection
    from bough.client.machine import Machine
    from bough.pytest_plugin.forks import LiveFork

#: Bound of each question to a guest that perhaps hangs.
_GUEST_S = 30.0
_CONSOLE_BYTES = 2 * 1024 * 1024
#: All journals, of this boot: a fork has another machine-id than the journal that it continues.
_JOURNAL = (
    "journalctl --sync; journalctl --no-pager --merge --output=short-iso-precise --lines=20000 "
    "_BOOT_ID=$(tr -d - </proc/sys/kernel/random/boot_id)"
)


class Evidence:
    """Writes the directory of one failed test.

    Args:
        api: a connection that records no step.
    """

    def __init__(self, directory: Path, api: Connection | None) -> None:
        self.directory = directory
        self.problems: list[str] = []
        self._api = api
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    def write(self, name: str, content: str | bytes) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="replace"))

    def collect(self, fork: LiveFork) -> None:
        """Write what the machines of a fork tell. What cannot be had is told by `problems`."""
        for role, machine in fork.machines.items():
            self._collect_machine(role, self._unrecorded(machine))
        for capture in fork.captures:
            with self.trying(f"capture of network {capture.name}"):
                capture.save(self.directory / f"network-{capture.name}.pcapng")
        for network in fork.networks:
            with self.trying(f"network {network.name}"):
                self.write(f"network-{network.name}.json", _json(network.info().raw))

    def bundle(self, fork: LiveFork) -> None:
        """Export the machine or the project as it runs, to one file."""
        name = fork.subject.name
        with self.trying(f"bundle of {name}"):
            fork.subject.export(self.directory / f"{name}.bough")

    def faults(self, forks: list[LiveFork]) -> None:
        """Write the faults that are on."""
        from bough.client.fault import list_faults

        ours = {word for fork in forks for one in fork.machines.values() for word in (one.id, one.name)}
        with self.trying("faults"):
            found = list_faults(self._api) if self._api is not None else []
            present = [one.raw for one in found if ours.intersection(one.machines)]
            if present:
                self.write("faults.json", _json(present))

    def files(self) -> list[str]:
        """Return the names of all files, relative to the directory."""
        found = (path for path in self.directory.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.directory)) for path in found)

    def close(self) -> None:
        if self.problems:
            self.write("missing.txt", "\n".join(self.problems) + "\n")

    def _collect_machine(self, role: str, machine: Machine) -> None:
        name = role or machine.name
        parts: dict[str, Callable[[], str | bytes]] = {
            "machine.json": lambda: _json(machine.info(look=True).raw),
            "console.txt": lambda: plain_text(machine.logs(tail_bytes=_CONSOLE_BYTES).encode()),
            "qemu.txt": lambda: plain_text(machine.logs("qemu").encode()),
        }
        running = False
        with self.trying(f"{name}: state"):
            info = machine.info()
            running = info.state == "running"
            if running and info.vnc is not None:
                parts["screen.png"] = machine.screenshot
        if running:
            parts["journal.txt"] = lambda: machine.shell(_JOURNAL, timeout=_GUEST_S).stdout
        else:
            self.problems.append(f"{name}: no journal and no screen: the machine does not run")
        for file, read in parts.items():
            with self.trying(f"{name}: {file}"):
                if content := read():
                    self.write(f"{name}/{file}", content)

    def _unrecorded(self, machine: Machine) -> Machine:
        """Return the same machine, through a connection that records no step."""
        assert self._api is not None, "a fork without a connection"
        return type(machine)(self._api, machine.id, name=machine.name)

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Run the block. An error of bough or of the disk becomes one of `problems`."""
        try:
            yield
        except (BoughError, OSError) as error:
            self.problems.append(f"{what}: {error}")


def directory_name(nodeid: str) -> str:
    """Return a test's name as the name of a directory."""
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", nodeid.replace("::", ".")).strip("-.")
    return name[:150]


def render_steps(steps: list[Step], left_out: int) -> str:
    """Return the steps of a test as text: time, duration, machine, title, end, output."""
    lines = []
    for step in steps:
        ended = step.ended if step.ended is not None else time.time()
        at = time.strftime("%H:%M:%S", time.localtime(step.began)) + f"{step.began % 1:.3f}"[1:]
        title = f"$ {step.title}" if step.kind == "command" else f"{step.kind}: {step.title}"
        end = "still running" if step.ended is None else step.status
        lines.append(
            f"{at} {ended - step.began:8.3f} s  {step.machine:12} {title}" + (f"  [{end}]" if end else "")
        )
        lines += [f"    {line}" for line in step.output.rstrip("\n").splitlines()]
    if left_out:
        lines.append(f"{left_out} more steps")
    return "\n".join(lines) + "\n"


def command_for(home: Path, default_home: Path, *words: str) -> str:
    """Return a command line of bough for that home, to be copied to a shell."""
    before = "" if home == default_home else f"BOUGH_HOME={shlex.quote(str(home))} "
    return before + shlex.join(["bough", *words])


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str) + "\n"

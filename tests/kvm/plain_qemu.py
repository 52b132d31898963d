"""Plain QEMU on KVM with the small guest: the peer of a boot and of a fork."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.kvm.small_guest import CMDLINE, SmallGuest
from tests.waiting import wait_until

_HARDWARE = ("-nodefaults", "-display", "none", "-machine", "q35,accel=kvm", "-m", "256", "-smp", "1")


class PlainQemu:
    """A running QEMU without jail. A context manager: QEMU is killed at the end.

    Args:
        place: a directory for its files; states saved by `savevm` stay there.
        disk: boot this disk; changes are thrown away.
        direct: boot kernel and initrd, which print "tick" 20 times a second.
        load: continue from this saved state.
    """

    def __init__(
        self,
        place: Path,
        cpu: str,
        *,
        disk: Path | None = None,
        direct: SmallGuest | None = None,
        load: str | None = None,
    ) -> None:
        self._socket = place / "qmp"
        qemu = shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"
        argv = [qemu, *_HARDWARE, "-cpu", cpu, "-serial", "stdio"]
        argv += ["-qmp", f"unix:{self._socket},server=on,wait=off"]
        if disk is not None:
            argv += ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
        if direct is not None:
            argv += ["-kernel", str(direct.kernel), "-initrd", str(direct.initrd)]
            argv += ["-append", f"{CMDLINE} ticks", "-drive", f"file={_states(place)},if=virtio"]
        argv += ["-loadvm", load] if load else []
        self._began = time.monotonic()
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def __enter__(self) -> PlainQemu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self, text: bytes) -> float:
        """Return the seconds from QEMU's start to a line with `text` on the serial console."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if text in line:
                return time.monotonic() - self._began
        raise AssertionError(f"QEMU ended without {text!r}")

    def monitor(self, command: str) -> None:
        """Run a command of QEMU's monitor."""
        with socket.socket(socket.AF_UNIX) as connection:
            wait_until(self._socket.exists, what="QEMU listens")
            connection.connect(str(self._socket))
            with connection.makefile("rw") as stream:
                stream.readline()  # the greeting
                _ask(stream, "qmp_capabilities")
                told = _ask(stream, "human-monitor-command", **{"command-line": command})
                assert told == "", told


def _ask(stream: Any, command: str, **arguments: Any) -> Any:
    stream.write(json.dumps({"execute": command, "arguments": arguments}))
    stream.flush()
    while True:
        message = json.loads(stream.readline())
        assert "error" not in message, message
        if "return" in message:
            return message["return"]


def _states(place: Path) -> Path:
    disk = place / "states.qcow2"
    if not disk.exists():
        create = ["qemu-img", "create", "-q", "-f", "qcow2", disk, "1G"]
        subprocess.run(create, check=True)
    return disk

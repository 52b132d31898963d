"""The peer of exec and copy: OpenSSH into the same guest, over one kept connection."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.machine import run_bough


@dataclass(frozen=True)
class Ssh:
    options: tuple[str, ...]
    host: str

    def run(self, *command: str) -> None:
        subprocess.run(["ssh", *self.options, self.host, *command], check=True, stdin=subprocess.DEVNULL)

    def copy(self, source: str | Path, target: str | Path) -> None:
        subprocess.run(["scp", "-q", *self.options, str(source), str(target)], check=True)


@contextmanager
def a_kept_connection(machine: str) -> Iterator[Ssh]:
    """Yield an ssh with ControlMaster: commands after the first need no handshake."""
    with tempfile.TemporaryDirectory(prefix="bough-bench-") as directory:
        config = Path(directory) / "config"
        config.write_text(run_bough("ssh-config", machine))
        key = Path(directory) / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        authorize = "mkdir -p -m 0700 /root/.ssh && printf '%s\\n' \"$1\" >> /root/.ssh/authorized_keys"
        public = Path(f"{key}.pub").read_text().strip()
        run_bough("exec", machine, "--", "sh", "-c", authorize, "sh", public)
        options = ("-F", str(config), "-i", str(key), "-o",
                   f"ControlPath={directory}/control", "-o", "ControlMaster=auto",
                   "-o", "ControlPersist=600", "-o", "LogLevel=ERROR")  # fmt: skip
        ssh = Ssh(options, machine)
        ssh.run("true")
        try:
            yield ssh
        finally:
            subprocess.run(["ssh", *options, "-O", "exit", machine], check=False, capture_output=True)

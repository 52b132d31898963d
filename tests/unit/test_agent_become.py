"""The agent's steps for a new identity, as far as a test needs no guest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bough.guest import agent_become

RENAMED = """
import socket, subprocess
from types import SimpleNamespace
from bough.guest import agent_become

subprocess.run(["ip", "link", "add", "enp0s3", "type", "veth"], check=True)
old = open("/sys/class/net/enp0s3/address").read().strip()
ready = SimpleNamespace(nics={old: b"eth0"}, socket=socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
agent_become._set_mac(old, "52:54:00:01:02:03", ready)
print(open("/sys/class/net/enp0s3/address").read().strip())
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="makes a network card")
def test_a_card_that_got_another_name_since_the_snapshot_was_prepared() -> None:
    """The snapshot is of a booting guest, whose network card udev renames just then."""
    mount = 'mount -t sysfs sysfs /sys && exec "$@"'
    words = ["unshare", "--net", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", RENAMED]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "52:54:00:01:02:03\n", done.stderr


def test_a_machine_id_is_set_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, link, missing = (tmp_path / name for name in ("own", "link", "missing"))
    own.write_text("0" * 32 + "\n")
    link.symlink_to(own)
    monkeypatch.setattr(agent_become, "_MACHINE_IDS", (str(link), str(own), str(missing)))
    agent: Any = SimpleNamespace(ready=None)
    told = agent_become.become(agent, 1, {"machine_id": "ab" * 16})
    assert told["failed"] == []
    assert own.read_text() == "ab" * 16 + "\n"
    assert link.is_symlink()
    assert not missing.exists()

"""Prepare the machine once. All tests start from a snapshot of the prepared machine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bough.client import Machine

UNIT = """[Service]
ExecStart=/usr/bin/python3 /srv/counter.py
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""
PROGRAM = (Path(__file__).parent / "counter.py").read_text()


def install_counter(machine: Machine) -> None:
    machine.write_file("/srv/counter.py", PROGRAM)
    machine.write_file("/etc/systemd/system/counter.service", UNIT)
    machine.succeed("systemctl daemon-reload && systemctl enable --now counter")
    machine.wait_for_unit("counter")
    machine.wait_for_open_port(8000)


@pytest.fixture(scope="session")
def bough_prepare() -> Callable[[Machine], None]:
    return install_counter

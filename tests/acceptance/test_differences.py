"""`bough diff`: what differs between machines, snapshots and images."""

from __future__ import annotations

import pytest

import bough
from bough.errors import Conflict, InvalidInput, NotFound
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY


@pytest.fixture
def still(cli: Cli, debian: str, gone: list[str]) -> str:
    """Return the name of a stopped machine that has never run."""
    gone.append("still")
    cli("create", debian, "--name", "still", "--memory", MEMORY)
    return "still"


def test_a_machine_that_never_ran(cli: Cli, hv: bough.Hypervisor, debian: str, still: str) -> None:
    lines = cli.text("diff", still).splitlines()
    assert lines[0].startswith(f"--- image {debian} (Debian")
    assert lines[1].startswith("+++ machine still (Debian")
    assert lines[-1] == "no differences"
    assert cli.text("diff", "--brief", debian, still).splitlines() == lines
    found = cli.json("diff", "--json", f"image:{debian}", f"machine:{still}")
    assert found == hv.diff(debian, hv.machine(still)).raw
    assert (found["after"]["state"], found["packages"]["manager"]) == ("stopped", "dpkg")
    assert found["files"]["list"] == found["disk_use"]["directories"] == []


def test_names_that_mean_nothing_or_too_much(cli: Cli, hv: bough.Hypervisor, debian: str, still: str) -> None:
    cli.error("diff", "nothing", says="no machine, snapshot or image is called 'nothing'")
    cli.error("diff", "image:still", says="no image is called 'still'", hint="bough image list")
    cli.error("diff", debian, says="has no earlier state", hint="bough diff BEFORE AFTER")
    cli.error("diff", still, still, says="cannot be compared with itself")
    with pytest.raises(NotFound):
        hv.machine(still).diff("nothing")
    with pytest.raises(InvalidInput):
        hv.diff(debian, debian)
    snapshot = hv.machine(still).snapshot("still")
    try:
        with pytest.raises(Conflict, match="ambiguous"):
            hv.diff(debian, "still")
        assert hv.diff("snapshot:still", "machine:still").configuration == []
    finally:
        snapshot.delete()

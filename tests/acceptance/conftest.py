"""bough as its user runs it: the command of the venv, as a separate process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.paths import Home
from tests.torture.processes import qemus
from tests.waiting import wait_until

BOUGH = Path(sys.executable).parent / "bough"


@dataclass(frozen=True)
class Cli:
    """The command `bough` with its own environment."""

    environment: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, *words: str | Path, stdin: bytes | None = b"", check: bool = True, timeout_s: float = 180
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [BOUGH, *map(str, words)],
            input=stdin,
            capture_output=True,
            env=self.env,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            command = " ".join(["bough", *map(str, words)])
            pytest.fail(f"{command} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
        return done

    @property
    def env(self) -> dict[str, str]:
        return os.environ | self.environment

    def text(self, *words: str | Path, **options: Any) -> str:
        """Return standard output, without the last newline."""
        return self(*words, **options).stdout.decode().rstrip("\n")

    def json(self, *words: str | Path, **options: Any) -> Any:
        return json.loads(self(*words, "--json", **options).stdout)

    def popen(self, *words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([BOUGH, *map(str, words)], env=self.env, **options)

    def names(self) -> list[str]:
        return sorted(machine["name"] for machine in self.json("list"))

    def error(self, *words: str | Path, says: str, hint: str | None = None, **options: Any) -> str:
        """Return standard error of a command that must fail: one error with `says`, one hint, no
        traceback.
        """
        before = self.names() if "list" not in words else None
        done = self(*words, check=False, **options)
        told = done.stderr.decode()
        assert done.returncode not in (0, -9), told
        assert done.stdout == b"", done.stdout
        assert told.startswith("error: ") or "\nerror: " in told, told
        assert "Traceback" not in told, told
        assert says.lower() in told.lower(), told
        if hint is not None:
            assert "hint: " in told, told
            assert hint.lower() in told.partition("hint: ")[2].lower(), told
        if before is not None:
            assert self.names() == before, "something was half-made"
        return told


@pytest.fixture(scope="session")
def cli(bough_home: Home) -> Cli:
    return Cli()


@pytest.fixture(scope="session")
def box(cli: Cli, booted: bough.Snapshot) -> Iterator[str]:
    """Yield the name of a running machine that all tests here share: leave it running and unchanged."""
    name = "box"
    cli("fork", booted.id, name)
    yield name
    cli("delete", name, "--force", check=False)


@pytest.fixture
def gone(cli: Cli) -> Iterator[list[str]]:
    """Yield a list for names of machines that the test makes; they are deleted at its end."""
    names: list[str] = []
    yield names
    for name in names:
        cli("delete", name, "--force", check=False)


@pytest.fixture
def images(cli: Cli) -> Iterator[list[str]]:
    names: list[str] = []
    yield names
    for name in reversed(names):
        cli("image", "delete", name, check=False)
    cli("image", "prune")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> None:
    if "bough_home" in request.fixturenames:
        request.getfixturevalue("nothing_left")


def is_thawed(home: Home, machine_id: str) -> bool:
    """Return whether the machine's QEMU continues from a process image."""
    pid = qemus(home).get(machine_id)
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/proc/self/fd/")
    except FileNotFoundError:
        return False


def records(home: Home) -> list[dict[str, Any]]:
    """Return the records of all machines, also of machines that belong to no user."""
    found = []
    for path in home.machines.glob("*/machine.json"):
        with contextlib.suppress(FileNotFoundError):  # a machine that is being deleted
            found.append(json.loads(path.read_bytes()))
    return found


def begun(home: Home, snapshot: str) -> list[str]:
    """Return ids of paused machines with the state of that snapshot that no user has yet."""
    return [
        record["id"]
        for record in records(home)
        if record["standby"] and record["snapshot"] == snapshot and record["state"] == "paused"
    ]


def wait_begun(home: Home, snapshot: str) -> str:
    """Wait for the fork that stays: a fork begun earlier gives way to a fork from a process image."""

    def is_there() -> bool:
        return any(is_thawed(home, machine_id) for machine_id in begun(home, snapshot))

    # A pre-warm uses idle processor time only, and other tests run beside this one.
    wait_until(is_there, timeout_s=240, what="the next fork is begun, from a frozen process")
    (found,) = begun(home, snapshot)
    return found

"""Every command that takes a machine follows --project, --file and the bough.toml of the directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bough.cli.main import cli
from bough.contract.service import API_VERSION
from bough.paths import Home
from bough.version import __version__
from tests.commands import is_choice, leaves
from tests.unit.api_peer import Answer, ApiPeer

#: Command -> words, each with the role "db" or the network "back" of two projects.
COMMANDS = {
    "start": "db",
    "stop": "db",
    "pause": "db",
    "suspend": "db",
    "resume": "db",
    "set": "db --vcpus 1",
    "rename": "db other",
    "diff": "db",
    "snapshot create": "db",
    "snapshot list": "db",
    "snapshot tree": "db",
    "fork": "db",
    "restore": "db calm",
    "export": "db db.bough",
    "delete": "db",
    "info": "db",
    "wait": "db",
    "exec": "db true",
    "shell": "db",
    "console": "db",
    "screenshot": "db db.png",
    "type": "db text",
    "screen": "db",
    "cp": "db:/etc/hosts copy",
    "network info": "back",
    "network delete": "back",
    "network attach": "back db",
    "network detach": "back db",
    "network capture": "back frames --machine db",
    "fault link": "db --loss 5% --network back",
    "fault partition": "db app",
    "fault isolate": "db",
    "fault bridge": "db",
    "fault majorities-ring": "--network back",
    "fault heal": "--machine db --network back",
    "fault unplug": "db --network back",
    "fault pause": "db",
    "fault power-arm": "db",
    "fault power-cut": "db",
    "fault crash": "db",
    "fault reset": "db",
    "fault panic": "db",
    "fault kill": "db nginx",
    "fault disk": "db write",
    "fault throttle": "db --iops 50",
    "fault full": "db",
    "fault clock": "db --jump 2h",
    "fault cpu": "db",
    "fault memory": "db 64MiB",
    "port list": "db",
    "port add": "db 0:80",
    "port remove": "db 80",
    "mount": "db",
    "umount": "db /srv",
    "proxy": "db 22",
    "ssh": "db",
    "ssh-config": "db",
    "logs": "db",
    "restart": "db",
}


class Service:
    """A service with two projects that have the same roles and networks. The service refuses all changes."""

    def __init__(self, home: Home) -> None:
        self.asked: list[str] = []
        home.api_socket.parent.mkdir(parents=True)
        self._peer = ApiPeer(home.api_socket, self._answer)

    def _answer(self, method: str, path: str, body: bytes) -> Answer:
        target = path.partition("?")[0].removeprefix("/v1")
        if method == "GET" and target in _ANSWERS:
            return _found(_ANSWERS[target])
        self.asked.append(f"{method} {path} {body.decode()}")
        if target.startswith("/projects/"):
            return _refused(404, "not-found", f"no project is called {target[10:]}")
        if method == "GET" and target in ("/machines/db.shop", "/machines/other", "/networks/back.shop"):
            return _found({"id": "0123456789ab", "name": "shop-db"})
        if method == "GET" and target in ("/machines/db", "/networks/back"):
            return _refused(409, "conflict", "2 projects have it")
        return _refused(409, "wrong-state", "not now")

    def close(self) -> None:
        self._peer.close()


def _found(data: Any) -> Answer:
    return 200, "application/json", [json.dumps(data).encode()]


def _refused(status: int, code: str, message: str) -> Answer:
    error = {"error": {"code": code, "message": message}}
    return status, "application/json", [json.dumps(error).encode()]


def _project(name: str) -> dict[str, Any]:
    machines = [{"id": f"{role}{name}", "role": role, "name": f"{name}-{role}"} for role in ("db", "app")]
    return {
        **{"id": name, "name": name, "domain": "shop", "file": None, "loopback": "127.44.1.9"},
        **{"created": "2030-01-01T00:00:00Z", "state": "running", "machines": machines},
        "networks": [{"id": f"net{name}", "name": "back", "subnet": "10.160.1.0/24"}],
    }


_ANSWERS = {
    "/version": {"version": __version__, "api": API_VERSION, "pid": 1, "busy": 0},
    "/projects/shop": _project("shop"),
    "/snapshots": [],
}


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("BOUGH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = Service(Home.at(tmp_path / "home"))
    yield found
    found.close()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of the project shop, which is the present one."""
    place = tmp_path / "shop"
    place.mkdir()
    (place / "bough.toml").write_text('name = "shop"\n[machines.db]\nimage = "debian:12"\n')
    monkeypatch.chdir(place)
    return place


def bough(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def _words(command: str, *options: str) -> list[str]:
    return [*command.split(), *options, *COMMANDS[command].split()]


def _check(asked: list[str], command: str) -> None:
    """Check that a request names each machine and network as one of the project shop."""
    told = "\n".join(asked)
    for word in ("db", "back"):
        if word in COMMANDS[command].replace(":", " ").split():
            chosen = (f"{word}.shop", f"{word}shop", "/projects/shop/")
            assert any(form in one for one in asked for form in chosen), told


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_follows_the_project_that_it_names(command: str, service: Service) -> None:
    done = bough(*_words(command, "--project", "shop"))
    assert done.exit_code != 2, done.output
    _check(service.asked, command)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_follows_the_file_that_it_names(
    command: str, service: Service, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    done = bough(*_words(command, "--file", "shop/bough.toml"))
    assert done.exit_code != 2, done.output
    _check(service.asked, command)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_follows_the_project_of_the_directory(
    command: str, service: Service, directory: Path
) -> None:
    done = bough(*_words(command))
    assert done.exit_code != 2, done.output
    _check(service.asked, command)


def test_the_list_has_every_command_with_these_options() -> None:
    of_projects = {"up", "down", "ps", "config", "top", "create", "run", "standby"}
    takes = {
        leaf.name
        for leaf in leaves().values()
        if any(is_choice(parameter) for parameter in leaf.command.params)
    }
    assert takes | {"proxy", "logs", "restart"} == set(COMMANDS)
    assert not takes & of_projects


def test_another_name_needs_no_project(service: Service, directory: Path) -> None:
    bough("pause", "other")
    assert service.asked == ["GET /v1/machines/other ", "POST /v1/machines/other/pause "]


def test_a_reference_with_a_project_is_left_alone(service: Service, directory: Path) -> None:
    bough("fault", "isolate", "db.shop-1")
    bough("fault", "isolate", "db", "--network", "back.shop-1")
    asked = [json.loads(one.split(maxsplit=2)[2]) for one in service.asked]
    assert [one["machines"] for one in asked] == [["db.shop-1"], ["db"]]
    assert asked[1]["network"] == "back.shop-1"


def test_without_a_file_the_ambiguity_is_told(service: Service) -> None:
    done = bough("pause", "db")
    assert service.asked == ["POST /v1/machines/db/pause "]
    assert done.exit_code == 1


def test_an_unknown_role_names_the_machines_of_the_project(service: Service) -> None:
    done = bough("fault", "isolate", "dbb", "--project", "shop")
    assert "project 'shop' has no machine 'dbb'" in str(done.exception)
    assert service.asked == []


def test_an_unknown_project(service: Service) -> None:
    done = bough("fault", "isolate", "db", "--project", "shopp")
    assert "no project is called shopp" in str(done.exception)

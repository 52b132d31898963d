"""Projects: three machines that one file describes, brought up, changed and taken down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.errors import InvalidSpec, NotFound, ProjectFailed
from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY
from tests.torture.processes import service_pid
from tests.waiting import wait_until

#: A guest boots in 15 s on a quiet host, and takes much longer beside other work.
BOOT_S = 600
SHOP = '''
name = "shop"

[shared.base]
image = "%(image)s"
memory = "%(memory)s"
networks = ["back"]

[networks.back]

[shared.server]
extends = "base"
commands = ["systemctl enable --now listener"]
healthcheck = { port = 8000, start_interval = "200ms" }

[[shared.server.files]]
path = "/etc/systemd/system/listener.service"
content = """
[Service]
ExecStart=python3 -m http.server 8000 --directory /etc
[Install]
WantedBy=multi-user.target
"""

[machines.db]
extends = "server"

[machines.app]
extends = "base"
networks = { back = { aliases = ["api"] } }
depends_on = ["db"]

[machines.web]
extends = "server"
depends_on = { app = "started" }
ports = ["8080:8000"]
%(web)s

[machines.debug]
extends = "base"
profiles = ["debug"]
'''
ONE = """
name = "%(name)s"

[machines.main]
image = "%(image)s"
memory = "%(memory)s"
%(more)s
"""


@dataclass
class File:
    """A project's file, written again by `write`."""

    cli: Cli
    path: Path
    text: str
    values: dict[str, str]

    def write(self, **values: str) -> None:
        self.path.write_text(self.text % {**self.values, **values})

    def machines(self) -> dict[str, dict[str, Any]]:
        return {one["role"]: one for one in self.cli.json("ps", "--file", self.path)["machines"]}

    def processes(self) -> dict[str, tuple[Any, ...]]:
        """Return role -> what a change of the machine changes: its id, process and settings."""
        return {role: (one["id"], one["pid"], one["spec"]) for role, one in self.machines().items()}


@pytest.fixture(scope="module")
def shop(cli: Cli, debian: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[File]:
    """Yield a project of three machines that is up; each test leaves it so."""
    path = tmp_path_factory.mktemp("shop") / "bough.toml"
    file = File(cli, path, SHOP, {"image": debian, "memory": MEMORY, "web": ""})
    file.write()
    told = cli("up", "--file", file.path, timeout_s=BOOT_S).stderr.decode()
    assert "network back: create" in told
    assert "web: up" in told
    yield file
    cli("down", "--file", file.path, "--volumes", "--force", check=False)


@pytest.fixture
def one(cli: Cli, debian: str, tmp_path: Path) -> Iterator[Callable[..., File]]:
    """Yield a function that writes the file of a project of one machine, with more settings."""
    made: list[File] = []

    def write(name: str, more: str = "") -> File:
        (tmp_path / name).mkdir()
        values = {"name": name, "image": debian, "memory": MEMORY, "more": more}
        made.append(File(cli, tmp_path / name / "bough.toml", ONE, values))
        made[-1].write()
        return made[-1]

    yield write
    for file in made:
        cli("down", "--file", file.path, "--volumes", "--force", check=False)


# -- a project that is up --------------------------------------------------------------------------------


def test_all_machines_are_up_and_healthy(shop: File, cli: Cli) -> None:
    machines = shop.machines()
    assert list(machines) == ["db", "app", "web"]
    assert {one["health"] for one in machines.values()} == {"healthy"}
    assert [one["name"] for one in machines.values()] == ["shop-db", "shop-app", "shop-web"]
    (listed,) = cli.json("ps", "--all")
    assert (listed["name"], listed["state"]) == ("shop", "running")
    assert "shop" in cli.text("ps", "--all")
    assert "healthy" in cli("ps", "--file", shop.path).stdout.decode()
    # Each machine was started after the machines that it depends on.
    assert machines["db"]["started"] < machines["app"]["started"] < machines["web"]["started"]


def test_a_port_is_published_on_the_address_of_the_project(shop: File, cli: Cli) -> None:
    (port,) = shop.machines()["web"]["ports"]
    assert f"{port['host']}:{port['host_port']}:{port['guest_port']}" in cli.text("list")
    assert port["host"].startswith("127.")
    assert not port["host"].startswith("127.0.")
    with urllib.request.urlopen(f"http://{port['host']}:{port['host_port']}/hostname", timeout=30) as answer:
        assert answer.read().decode().strip() == "web"


def test_machines_find_each_other_by_their_roles(shop: File, cli: Cli) -> None:
    addresses = {role: one["nics"][1]["ipv4"] for role, one in shop.machines().items()}
    for name, role in (
        ("db", "db"),
        ("db.back", "db"),
        ("web.shop", "web"),
        ("api", "app"),
        ("api.shop", "app"),
    ):
        assert cli.text("exec", "app", "--", "getent", "ahostsv4", name).split()[0] == addresses[role]
    assert cli.text("exec", "db.shop", "--", "hostname") == "db"
    read = (
        "import urllib.request as u; print(u.urlopen('http://db.shop:8000/hostname').read().decode().strip())"
    )
    assert cli.text("exec", "--project", "shop", "app", "--", "python3", "-c", read) == "db"


def test_commands_take_roles(shop: File, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hello").write_text("hello\n")
    cli("cp", tmp_path / "hello", "db:/root/hello")
    assert cli.text("cp", "--project", "shop", "db:/root/hello", "-") == "hello"
    monkeypatch.chdir(shop.path.parent)
    cli("exec", "db", "--", "sh", "-c", "echo seen on the console >/dev/console")
    wait_until(
        lambda: "seen on the console" in cli.text("logs"), timeout_s=60, what="the console has the line"
    )
    told = cli("logs", "--file", shop.path, "--tail", "100000").stdout.decode()
    assert "db  | " in told
    assert "app | " not in cli.text("logs", "db", "web", "--project", "shop")
    figures = cli.json("top", "--file", shop.path)
    assert figures["db"]["memory_total_bytes"] > 0
    assert "TASKS" in cli("top", "--file", shop.path, "--once").stdout.decode()


def test_logs_are_followed_with_names(shop: File, cli: Cli) -> None:
    with cli.popen("logs", "-f", "--tail", "1", "--file", shop.path, stdout=subprocess.PIPE) as following:
        try:
            time.sleep(1)  # the consoles are connected; a line from before would do as well

            def is_shown() -> bool:
                cli("exec", "app.shop", "--", "sh", "-c", "echo follow me >/dev/console")
                assert following.stdout is not None
                os.set_blocking(following.stdout.fileno(), False)
                return b"app | follow me" in (following.stdout.read() or b"")

            wait_until(is_shown, timeout_s=60, what="the line is printed")
        finally:
            following.kill()


def test_a_project_is_named_without_its_file(shop: File, cli: Cli) -> None:
    assert [one["role"] for one in cli.json("ps", "--project", "shop")["machines"]] == ["db", "app", "web"]
    assert set(cli.json("top", "--project", "shop")) == {"db", "app", "web"}
    assert 'name = "shop"' in cli.text("config", "--project", "shop")
    assert cli.text(
        "proxy", "--project", "shop", "db", "8000", stdin=b"GET /hostname HTTP/1.0\r\n\r\n"
    ).endswith("db")


def test_programs_of_the_host_reach_machines_by_name(shop: File, cli: Cli) -> None:
    with cli.popen("proxy", "--socks", "0", "--file", shop.path, stdout=subprocess.PIPE) as proxy:
        try:
            assert proxy.stdout is not None
            host, _, port = (
                proxy.stdout.readline().decode().strip().removeprefix("socks5h://").rpartition(":")
            )
            with socket.create_connection((host, int(port)), timeout=60) as client:
                client.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x03\x07db.shop" + (8000).to_bytes(2, "big"))
                answer = client.makefile("rb")
                assert answer.read(12)[3] == 0
                client.sendall(b"GET /hostname HTTP/1.0\r\n\r\n")
                assert answer.read().endswith(b"\r\n\r\ndb\n")
        finally:
            proxy.terminate()


def test_a_project_in_python(shop: File, hv: bough.Hypervisor) -> None:
    project = hv.project(shop.path)
    assert [one.name for one in hv.projects()] == ["shop"]
    assert hv.project("shop").info().raw == project.info().raw
    assert list(project.machines) == list(project) == ["db", "app", "web"]
    assert project["db"].exec("hostname").stdout == "db\n"
    with pytest.raises(NotFound, match="no machine 'dp'"):
        project["dp"]
    assert [one["names"][0] for one in project.network("back").info().machines] == ["db", "app", "web"]
    assert hv.network("back.shop").id == hv.network("back").id == project.network("back").id
    assert set(project.logs()) == {"db", "app", "web"}
    assert {step["action"] for step in project.plan().steps} == {"keep"}
    assert project.config()["name"] == hv.project("shop").config()["name"] == "shop"
    with pytest.raises(NotFound, match="no project is called 'shp'"):
        hv.project("shp")


def test_an_unchanged_project_stays_as_it_is(shop: File, cli: Cli) -> None:
    before = shop.processes()
    assert "nothing to do" in cli("up", "--file", shop.path, timeout_s=BOOT_S).stderr.decode()
    assert shop.processes() == before


def test_a_changed_machine_alone_is_changed(shop: File, cli: Cli) -> None:
    before, processes = shop.machines(), shop.processes()
    cli("exec", "web", "--", "sh", "-c", "echo kept > /root/kept; sync")
    shop.write(web="vcpus = 1")
    assert (
        cli("up", "--file", shop.path, "--dry-run").stdout.decode() == "web: stop, change and start (vcpus)\n"
    )
    assert [one["action"] for one in cli.json("up", "--file", shop.path, "--dry-run")["steps"]] == [
        "keep",
        "keep",
        "keep",
        "restart",
    ]
    assert shop.processes() == processes
    cli("up", "--file", shop.path, timeout_s=BOOT_S)
    after = shop.machines()
    assert {role for role in after if after[role]["pid"] != before[role]["pid"]} == {"web"}
    assert cli.text("exec", "web", "--", "sh", "-c", "nproc; cat /root/kept") == "1\nkept"


def test_a_change_while_a_machine_runs(cli: Cli, shop: File) -> None:
    before = shop.machines()
    shop.values["web"] = 'vcpus = 1\nrestart = "on-failure"\ndisk = "20GiB"'
    shop.write()
    told = cli("up", "--file", shop.path, "--dry-run").stdout.decode()
    assert told == "web: change (disk, restart)\n"
    cli("up", "--file", shop.path, timeout_s=BOOT_S)
    after = shop.machines()
    assert after["web"]["pid"] == before["web"]["pid"]
    assert after["web"]["spec"]["restart"] == "on-failure"
    size = "import os; print(os.statvfs('/').f_blocks * os.statvfs('/').f_frsize >> 30)"
    assert int(cli.text("exec", "web", "--", "python3", "-c", size)) >= 18
    assert "nothing to do" in cli("up", "--file", shop.path, timeout_s=BOOT_S).stderr.decode()


def test_a_profile_and_an_orphan(cli: Cli, shop: File) -> None:
    cli("up", "--file", shop.path, "--profile", "debug", "--timeout", "5m", timeout_s=BOOT_S)
    assert list(shop.machines()) == ["db", "app", "web", "debug"]
    text = shop.text
    shop.text = text.partition("[machines.debug]")[0]
    shop.write()
    try:
        assert "debug: leave" in cli("up", "--file", shop.path, timeout_s=BOOT_S).stderr.decode()
        assert "debug" in shop.machines()
        cli("up", "--file", shop.path, "--remove-orphans", timeout_s=BOOT_S)
        assert "debug" not in shop.machines()
    finally:
        shop.text = text
        shop.write()


def test_what_would_lose_data_is_refused(shop: File, cli: Cli) -> None:
    before = shop.processes()
    web = shop.values["web"]
    shop.write(web=f"{web}\nfiles = [{{ path = '/etc/x', content = 'x' }}]")
    cli.error(
        "up",
        "--file",
        shop.path,
        says="files changed, which needs a new machine; its disks would be lost",
        hint="--recreate web",
    )
    shop.write(web=f"{web}\ndepends_on = ['web']")
    assert "line " in cli("up", "--file", shop.path, check=False, timeout_s=BOOT_S).stderr.decode()
    shop.write()
    cli.error("delete", "--force", "web", says="is the machine 'web' of project 'shop'", hint="bough down")
    cli.error("network", "delete", "back", says="in use by shop-db", hint="detach")
    assert shop.processes() == before
    cli("config", "--file", shop.path)
    assert json.loads(cli("config", "--file", shop.path, "--json").stdout)["name"] == "shop"


# -- projects of one machine -----------------------------------------------------------------------------


def test_a_failed_check_names_the_machine_and_its_output(
    cli: Cli, one: Callable[..., File], hv: bough.Hypervisor
) -> None:
    file = one(
        "sick",
        'healthcheck = { test = "echo no rows; false", interval = "100ms", retries = 2, start_period = 1 }',
    )
    done = cli("up", "--file", file.path, check=False, timeout_s=BOOT_S)
    told = done.stderr.decode()
    assert done.returncode == 1
    assert "project 'sick' is not up: machine 'sick-main' is unhealthy" in told
    assert "output: no rows" in told
    assert file.machines()["main"]["state"] == "running"
    assert file.machines()["main"]["health"] == "unhealthy"
    project = hv.project(file.path)
    with pytest.raises(ProjectFailed) as error:
        project.up()
    assert set(error.value.failures) == {"main"}
    # The machine that was made is used again.
    pid = file.machines()["main"]["pid"]
    file.write(more='healthcheck = { test = "true" }')
    cli("up", "--file", file.path, "--json", timeout_s=BOOT_S)
    assert (file.machines()["main"]["pid"], file.machines()["main"]["health"]) == (pid, "healthy")


@pytest.mark.long
def test_down_keeps_disks_and_down_with_volumes_keeps_nothing(
    one: Callable[..., File], cli: Cli, bough_home: Home
) -> None:
    file = one("kept")
    cli("up", "--file", file.path, timeout_s=BOOT_S)
    cli("exec", "main.kept", "--", "sh", "-c", "echo data > /root/data")
    cli("down", "--file", file.path, "--deadline", "60s")
    assert file.machines()["main"]["state"] == "stopped"
    assert cli.json("ps", "--file", file.path)["state"] == "stopped"
    cli("up", "--file", file.path, timeout_s=BOOT_S)
    assert cli.text("exec", "main.kept", "--", "cat", "/root/data") == "data"
    pid = file.machines()["main"]["pid"]
    cli("restart", "--file", file.path, "--project", "kept", "main", "--deadline", "60s", timeout_s=BOOT_S)
    assert file.machines()["main"]["pid"] != pid
    project = cli.json("ps", "--file", file.path)["id"]
    cli("down", "--file", file.path, "--volumes")
    assert not bough_home.project(project).exists()
    cli.error("ps", "--file", file.path, says="project 'kept' is not up", hint="bough up")
    assert "kept-main" not in cli.names()


@pytest.mark.long
def test_a_disk_does_not_shrink_and_a_machine_is_made_anew(one: Callable[..., File], cli: Cli) -> None:
    file = one("disk", 'disk = "10GiB"')
    cli("up", "--file", file.path, "--cold", "--force", timeout_s=BOOT_S)
    before = file.processes()
    file.write(more='disk = "9GiB"')
    cli.error(
        "up",
        "--file",
        file.path,
        says="the disk would shrink from 10 GiB to 9 GiB",
        hint="bough down --volumes",
    )
    assert file.processes() == before
    file.write(more='commands = ["touch /root/anew"]')
    cli.error("up", "--file", file.path, says="its disks would be lost", hint="bough up --recreate main")
    cli("up", "--file", file.path, "--recreate", timeout_s=BOOT_S)
    assert file.processes()["main"][0] != before["main"][0]
    assert cli.text("exec", "main.disk", "--", "ls", "/root/anew") == "/root/anew"


def test_a_taken_port_is_told_before_anything_is_made(cli: Cli, one: Callable[..., File], shop: File) -> None:
    (port,) = shop.machines()["web"]["ports"]
    file = one("taken", f'ports = ["{port["host"]}:{port["host_port"]}:80"]')
    cli.error(
        "up",
        "--file",
        file.path,
        says=f"port {port['host_port']} of {port['host']} cannot be used",
        hint="another port",
    )


def test_equal_roles_of_two_projects(
    one: Callable[..., File], cli: Cli, monkeypatch: pytest.MonkeyPatch, hv: bough.Hypervisor
) -> None:
    file = one("twin")
    cli("up", "--file", file.path, timeout_s=BOOT_S)
    cli("up", "--file", file.path, "--project", "other", timeout_s=BOOT_S)
    try:
        cli.error("exec", "main", "--", "true", says="2 projects have a role 'main'", hint="main.other")
        assert cli.text("exec", "main.other", "--", "hostname") == "main"
        monkeypatch.chdir(file.path.parent)
        assert cli.json("info", "main")["name"] == "twin-main"
        assert cli.json("fault", "pause", "main")["machines"] == ["twin-main"]
        cli("fault", "heal", "--machine", "main")
        monkeypatch.chdir("/")
        assert cli.text("exec", "--file", file.path, "main", "--", "hostname") == "main"
        paused = cli.json("fault", "pause", "main", "--project", "other")
        assert paused["machines"] == ["other-main"]
        cli("fault", "heal", paused["id"])
        loopbacks = {one.name: one.loopback for one in hv.list_projects()}
        assert loopbacks["twin"] != loopbacks["other"]
        cli("down", "--project", "other")
        assert hv.project("other").info().state == "stopped"
    finally:
        cli("down", "--project", "other", "--volumes", "--force")


def test_a_service_that_is_killed_during_up(one: Callable[..., File], cli: Cli, bough_home: Home) -> None:
    file = one("killed", 'commands = ["touch /root/begun", "sleep 3", "touch /root/done"]')
    with cli.popen("up", "--file", file.path, stderr=subprocess.PIPE) as client:
        wait_until(lambda: "killed-main" in cli.names(), timeout_s=120, what="the machine is made")
        os.kill(service_pid(bough_home), signal.SIGKILL)
        client.communicate(timeout=60)
    cli("up", "--file", file.path, timeout_s=BOOT_S)
    assert cli.text("exec", "main.killed", "--", "ls", "/root/done") == "/root/done"


def is_gone(cli: Cli, hv: bough.Hypervisor, name: str) -> bool:
    networks = [one.name for one in hv.list_networks() if one.domain == name]
    return (
        name not in [one.name for one in hv.list_projects()] + networks and f"{name}-main" not in cli.names()
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_ephemeral_project_ends_with_its_command(
    one: Callable[..., File], cli: Cli, hv: bough.Hypervisor, how: signal.Signals
) -> None:
    file = one("brief")
    with cli.popen("up", "--ephemeral", "--file", file.path, stderr=subprocess.PIPE) as client:
        assert client.stderr is not None
        told = next(line for line in client.stderr if b"until Ctrl-C" in line or b"error" in line)
        assert told == b"brief is up until Ctrl-C\n"
        assert cli.text("exec", "main.brief", "--", "hostname") == "main"
        client.send_signal(how)
        assert client.wait(60) in (0, -signal.SIGKILL)
    if how is signal.SIGINT:
        assert is_gone(cli, hv, "brief")
    wait_until(lambda: is_gone(cli, hv, "brief"), what="the project is gone")


def test_an_ephemeral_project_outlives_the_service_and_not_its_client(
    one: Callable[..., File], cli: Cli, hv: bough.Hypervisor, bough_home: Home
) -> None:
    file = one("brief", "networks = []")
    with hv.project(file.path) as project:
        project.up(ephemeral=True)
        os.kill(service_pid(bough_home), signal.SIGKILL)
        assert cli.text("exec", "main.brief", "--", "hostname") == "main"
        values = (file.values["image"], file.values["memory"])
        later = "networks = []\n[machines.later]\nimage = {!r}\nmemory = {!r}\nnetworks = []"
        file.write(more=later.format(*values))
        hv.project(file.path).up()
        assert set(project.machines) == {"main", "later"}
    assert is_gone(cli, hv, "brief")
    cli("up", "--file", file.path, timeout_s=BOOT_S)
    cli.error(
        "up", "--ephemeral", "--file", file.path, says="project 'brief' is kept", hint="--project brief-2"
    )


def test_an_ephemeral_project_that_does_not_come_up_is_deleted(
    one: Callable[..., File], cli: Cli, hv: bough.Hypervisor
) -> None:
    file = one("brief", 'healthcheck = { test = "false", retries = 1, start_period = "1s", interval = "1s" }')
    cli.error("up", "--ephemeral", "--file", file.path, says="unhealthy", hint=None, timeout_s=BOOT_S)
    assert is_gone(cli, hv, "brief")


def test_bad_files_and_names(
    cli: Cli, one: Callable[..., File], tmp_path: Path, hv: bough.Hypervisor
) -> None:
    file = one("bad", 'depends_on = ["db"]\nmemory_size = 3')
    with pytest.raises(InvalidSpec) as error:
        hv.project(file.path).up()
    assert {one["place"] for one in error.value.problems} == {
        "machines.main.depends_on[0]", "machines.main.memory_size",
    }  # fmt: skip
    cli.error("up", "--file", tmp_path / "none.toml", says="no file", hint=None)
    cli.error("down", "--project", "none", says="no project is called 'none'", hint="bough ps --all")
    cli.error("restart", "--project", "none", says="no project is called 'none'")

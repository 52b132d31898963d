"""Docker in a machine: a docker client on the host, and forks of a machine whose containers run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from tests.acceptance.conftest import Cli
from tests.pages import ROOT
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
RECIPE = ROOT / "examples/docker/image.toml"


class Docker:
    """Debian's docker client, unpacked from its package. The host has no daemon."""

    def __init__(self, place: Path, config: str) -> None:
        self._place = place
        subprocess.run(["apt-get", "download", "-q", "docker.io"], cwd=place, check=True, capture_output=True)
        package = next(place.glob("docker.io_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, place / "client"], check=True)
        package.unlink()
        (place / "config").write_text(config)
        # docker reads ~/.ssh of the user's account, whatever HOME is.
        ssh = place / "bin/ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {place / "config"} "$@"\n')
        ssh.chmod(0o755)

    def __call__(self, machine: str, *words: str | Path) -> str:
        place = self._place
        env = os.environ | {"DOCKER_HOST": f"ssh://{machine}.bough", "DOCKER_CONFIG": str(place / "docker")}
        env["PATH"] = f"{place / 'bin'}:{env['PATH']}"
        done = subprocess.run(
            [place / "client/usr/bin/docker", *words], env=env, capture_output=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
        return done.stdout.decode().strip()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docker")


@pytest.fixture(scope="module")
def docker(place: Path) -> Docker:
    if shutil.which("ssh") is None or shutil.which("apt-get") is None:
        pytest.skip("no ssh, or no Debian package of the docker client")
    return Docker(place, Cli().text("ssh-config", "--wildcard"))


@pytest.fixture(scope="module")
def engine(hv: bough.Hypervisor, debian: str) -> Iterator[str]:
    """Yield the name of a running machine with Docker."""
    cli = Cli()
    cli("image", "build", RECIPE, timeout_s=3000)
    machine = hv.create("docker", name="engine", memory="1GiB")
    machine.start()
    machine.wait_until_succeeds("docker info")
    yield "engine"
    cli("delete", "engine", "--force", check=False)


def archive(machine: bough.Machine, target: Path) -> Path:
    """Write an image's file system, of one static program, to a tar file."""
    target.with_suffix(".bin").write_bytes(machine.read_file("/bin/busybox"))
    with tarfile.open(target, "w") as tar:
        tar.add(target.with_suffix(".bin"), "bin/busybox", filter=_as_program)
    return target


def _as_program(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mode = 0o755
    return info


def test_a_client_on_the_host_and_a_fork(
    hv: bough.Hypervisor, docker: Docker, engine: str, place: Path, gone: list[str]
) -> None:
    assert "20.10" in docker(engine, "version", "--format", "{{.Server.Version}}")
    docker(engine, "import", archive(hv.machine(engine), place / "app.tar"), "app")
    assert docker(engine, "run", "--rm", "app", "/bin/busybox", "echo", "in") == "in"
    counting = "i=0; while :; do i=$((i + 1)); echo $i; /bin/busybox usleep 100000; done"
    docker(engine, "run", "-d", "--name", "counter", "app", "/bin/busybox", "sh", "-c", counting)
    wait_until(lambda: docker(engine, "logs", "counter") != "", what="the container counts")

    def count(machine: str) -> int:
        return int(docker(machine, "logs", "--tail", "1", "counter"))

    before = count(engine)
    gone.append("trial")
    hv.machine(engine).fork("trial")
    assert docker("trial", "ps", "--format", "{{.Names}}") == "counter"
    assert count("trial") >= before
    last = count("trial")
    wait_until(lambda: count("trial") > last, what="the container of the fork counts")
    docker("trial", "rm", "-f", "counter")
    docker("trial", "run", "-d", "--name", "other", "app", "/bin/busybox", "sleep", "1000")
    assert docker("trial", "ps", "--format", "{{.Names}}") == "other"
    assert docker(engine, "ps", "--format", "{{.Names}}") == "counter"
    assert docker("trial", "info", "--format", "{{.Name}}") == "trial"


def test_the_same_by_bough_exec(cli: Cli, engine: str) -> None:
    assert cli.text("exec", engine, "--", "docker", "images", "-q")

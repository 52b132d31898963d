"""Images and machines in a registry, by the command and the Python API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.container_registry import Registry, has_registry, serve_registry
from tests.images_samples import make_disk

pytestmark = pytest.mark.skipif(not has_registry(), reason="no skopeo or docker-registry")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with serve_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


def test_an_image_there_and_back(
    cli: Cli, hv: bough.Hypervisor, registry: Registry, images: list[str], tmp_path: Path
) -> None:
    name = f"docker://{registry.host}/team/small:1"
    images += ["small", name, "again"]
    cli("image", "import", make_disk(tmp_path / "disk.raw"), "--name", "small", "--no-agent")
    digest = next(image.digest for image in hv.images() if "small" in image.labels)
    pinned = cli.text("image", "push", "small", name)
    assert pinned.startswith(f"{name}@sha256:")
    assert cli.json("image", "push", "small", name)["digest"] == pinned.partition("@")[2]
    cli("image", "delete", "small")
    assert cli.json("image", "pull", name)["digest"] == digest
    assert cli.text("image", "pull", pinned, "--name", "again") == digest[:12]
    cli.error("image", "push", "small", name, says="no image is called")
    cli.error("image", "push", "again", "small:2", says="not the name of a place", hint="docker://")
    cli.error("image", "push", "again", "docker://127.0.0.1:1/x", says="cannot be pushed")
    cli.error("import", name, says="is an image", hint=f"bough image pull {name}")


def test_a_running_machine_there_and_back(
    cli: Cli, vm: bough.Machine, registry: Registry, bough_home: Home, gone: list[str]
) -> None:
    """The memory travels: a process and its file in memory go on."""
    name = f"docker://{registry.host}/team/vm:1"
    vm.succeed("echo word > /dev/shm/word; setsid sleep 1000 < /dev/null > /dev/null 2>&1 &")
    pinned = cli.text("export", vm.name, name)
    assert pinned.startswith(f"{name}@sha256:")
    assert vm.exec("true").ok, "the machine does not run on here"
    gone.append("there")
    cli("import", pinned, "--name", "there", "--identity", "new")
    assert cli.text("exec", "there", "--", "cat", "/dev/shm/word") == "word"
    assert cli.text("exec", "there", "--", "pgrep", "-c", "sleep") != "0"
    assert cli.text("exec", "there", "--", "hostname") == "there"
    cli.error("image", "pull", name, says="is a machine", hint=f"bough import {name}")
    cli.error("import", name, says="exists already", hint="another name")
    cli.error("export", vm.name, name, "--without-image", says="cannot leave the image out")
    before = registry.blobs()
    digits = cli.text("export", vm.name, name, "--disks-only").rpartition(":")[2]
    manifest = json.loads(registry.blobs()[digits].read_bytes())
    known = [layer for layer in manifest["layers"] if layer["digest"].partition(":")[2] in before]
    assert len(known) > len(manifest["layers"]) * 0.8, "unchanged chunks were sent again"
    assert not list(bough_home.incoming.iterdir())

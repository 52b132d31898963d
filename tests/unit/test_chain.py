"""The choice of overlays to merge, and QEMU's description of block nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bough.errors import MachineFailed, QmpLost
from bough.images.overlays import read_backing, render_chain
from bough.machines.disks.creation import disk_chain
from bough.machines.disks.merging import MOST_LAYERS, Chains, layers_to_merge
from bough.machines.disks.nodes import chain_below, read_nodes, read_tops
from bough.machines.record import MachineDisk
from bough.paths import Home
from bough.qemu.jail import Jail
from bough.qemu.qmp import Qmp

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize("count", range(MOST_LAYERS + 1))
def test_a_short_chain_is_left_alone(count: int) -> None:
    assert layers_to_merge([MIB] * count) == 0


def test_a_large_old_layer_is_not_copied_for_small_ones() -> None:
    sizes = [MIB] * 7 + [GIB, GIB]
    assert layers_to_merge(sizes) == 7
    assert layers_to_merge([GIB] + [MIB] * 7 + [GIB]) == 8, "those below are smaller than what is copied"


@pytest.mark.parametrize("size", [0, MIB])
def test_the_last_one_stays(size: int) -> None:
    assert layers_to_merge([size] * 9) < 9


@pytest.mark.parametrize(("snapshots", "times"), [(50, 1.5), (200, 3), (1000, 8)])
def test_a_long_life(snapshots: int, times: float) -> None:
    """Take many snapshots: the chain stays short, and each written byte is copied few times."""
    chain, own, copied = [GIB, 2 * GIB], 0, 0
    for _ in range(snapshots):
        chain.insert(0, own + MIB)
        own = 0
        count = layers_to_merge(chain)
        if count:
            own = sum(chain[:count])
            copied += own
            chain = chain[count:]
        assert len(chain) <= MOST_LAYERS
    assert copied < times * snapshots * MIB
    assert chain[-2:] == [GIB, 2 * GIB], "and what was there before is not"


class Told(Qmp):
    """A QEMU with prepared answers."""

    def __init__(self, nodes: Any, devices: Any = ()) -> None:  # not connected
        self._answers = {"query-named-block-nodes": nodes, "query-block": list(devices)}

    async def execute(self, command: str, /, **_: Any) -> Any:
        return self._answers[command]


def long_name(*files: str) -> str:
    """Return QEMU's name for a node that was given its backing file."""
    node: dict[str, Any] | None = None
    for file in reversed(files):
        node = {"driver": "qcow2", "file": {"driver": "file", "filename": file}, "backing": node}
    return f"json:{json.dumps(node)}"


NODES = [
    {
        "node-name": "top",
        "drv": "qcow2",
        "file": long_name("/t", "/m", "/b"),
        "backing_file": long_name("/m", "/b"),
    },
    {"node-name": "#block1", "drv": "file", "file": "/t"},
    {"node-name": "middle", "drv": "qcow2", "file": long_name("/m", "/b"), "backing_file": "/b"},
    {"node-name": "base", "drv": "raw", "file": "/b"},
    {"node-name": "base-file", "drv": "file", "file": "/b"},
]


async def test_a_chain_by_its_names() -> None:
    device = {"qdev": "/machine/peripheral/disk0-device/virtio-backend", "inserted": {"node-name": "top"}}
    qmp = Told(NODES, [device, {"device": "", "qdev": "/machine/peripheral/floppy"}])
    tops, nodes = await read_tops(qmp), await read_nodes(qmp)
    assert {name: node.file for name, node in tops.items()} == {"disk0": "/t"}
    assert [node.name for node in chain_below(nodes, "top")] == ["middle", "base"]


@pytest.mark.parametrize(
    "nodes",
    [
        {},
        None,
        [{"drv": "qcow2"}],
        [{"node-name": "top", "drv": "qcow2", "file": "json:" + "[" * 100_000}],
        [{"node-name": "top", "drv": "qcow2", "file": 'json:{"file": 5}'}],
        [{"node-name": "top", "drv": "qcow2", "file": "/t", "backing_file": "/nowhere"}],
    ],
)
async def test_what_makes_no_sense_is_no_chain(nodes: Any) -> None:
    with pytest.raises((MachineFailed, QmpLost)):
        await read_nodes(Told(nodes))


async def test_what_is_no_node_is_not_listed() -> None:
    assert await read_nodes(Told(["node", None, 5])) == {}


async def test_a_chain_that_goes_in_a_circle_ends() -> None:
    nodes = [{"node-name": "a", "drv": "qcow2", "file": "/a", "backing_file": "/a"}]
    assert len(chain_below(await read_nodes(Told(nodes)), "a")) == 1000


# -- of a machine that is off -------------------------------------------------------------------------

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img here")


class Still:
    """The known facts of a stopped machine with nine overlays, each with data."""

    def __init__(self, home: Home) -> None:
        self.home, self.name, self.merged = home, "web", 0
        self.paths = home.machine("aaaaaaaaaaaa")
        self.paths.disks.mkdir(parents=True)
        image = home.image("x").disk
        image.parent.mkdir()
        image.write_bytes(b"\1" * MIB)
        layers = [image]
        for number in range(MOST_LAYERS):
            path = home.snapshot(f"{number}").disk(0)
            path.parent.mkdir(parents=True)
            self.make(path, layers[0], f"write -q -P {number + 2} {number * 64}k 128k")
            path.chmod(0o444)
            layers.insert(0, path)
        self.make(self.paths.disks / "0.qcow2", layers[0], "write -q -z 0 64k")
        names = [str(layer.relative_to(home.root)) for layer in layers]
        disk = MachineDisk(file="0.qcow2", size_bytes=MIB, layers=names)
        media, hardware = SimpleNamespace(root="image"), SimpleNamespace(uid=None)
        self.record = SimpleNamespace(disks=[disk], media=media, hardware=hardware)
        self.before = self.content()

    def make(self, path: Path, below: Path, what: str) -> None:
        named = f"../../../{below.relative_to(self.home.root)}"
        command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", named, "-F"]
        subprocess.run([*command, below.suffix[1:], path, str(MIB)], check=True)
        subprocess.run(["qemu-io", "-c", what, path], check=True)

    def lead(self, disk: Path, elsewhere: Path) -> None:
        """Write that backing file into the header."""
        disk.chmod(0o600)
        subprocess.run(["qemu-img", "rebase", "-u", "-b", elsewhere, "-F", "raw", disk], check=True)

    def content(self) -> bytes:
        out = self.home.root / "out.raw"
        chain = render_chain(disk_chain(self.record.disks[0], self.paths, self.home))
        subprocess.run(["qemu-img", "convert", "-O", "raw", chain, out], check=True)
        return out.read_bytes()

    def change(self, disks: list[MachineDisk]) -> None:
        self.record.disks = disks

    async def merge(self) -> None:
        def merged() -> None:
            self.merged += 1

        await Chains(cast("Any", self), merged).merge_at_rest(Jail())


@pytest.fixture
def still(tmp_path: Path) -> Still:
    home = Home(tmp_path / "home")
    home.create()
    return Still(home)


@needs_qemu_img
async def test_layers_are_merged_and_nothing_changes(still: Still) -> None:
    layers = {layer: (still.home.root / layer).read_bytes() for layer in still.record.disks[0].layers}
    await still.merge()
    assert still.merged == 1
    assert len(still.record.disks[0].layers) < MOST_LAYERS
    assert still.content() == still.before
    own, below, *_ = disk_chain(still.record.disks[0], still.paths, still.home)
    assert read_backing(own) == below
    assert layers == {layer: (still.home.root / layer).read_bytes() for layer in layers}


@needs_qemu_img
@pytest.mark.parametrize("which", ["own", "layer"])
async def test_a_header_that_leads_elsewhere(still: Still, tmp_path: Path, which: str) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"secret! " * (MIB // 8))
    disk = disk_chain(still.record.disks[0], still.paths, still.home)[0 if which == "own" else 3]
    still.lead(disk, secret)
    depth = len(still.record.disks[0].layers)
    await still.merge()
    assert len(still.record.disks[0].layers) == depth, "it is left as it is"
    assert b"secret!" not in (still.paths.disks / "0.qcow2").read_bytes()
    assert still.content() == still.before

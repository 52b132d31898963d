"""Which layers of a chain are merged; and what QEMU says of its nodes."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from bough.errors import MachineFailed
from bough.machines.blocks import chain_below, read_nodes, read_tops
from bough.machines.chain import MOST_LAYERS, layers_to_merge
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
    """A snapshot after the other: the chain stays short, and what is written is copied few times."""
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


class Told:
    """A QEMU that answers so."""

    def __init__(self, nodes: Any, devices: Any = ()) -> None:
        self._answers = {"query-named-block-nodes": nodes, "query-block": list(devices)}

    async def execute(self, command: str, **_: Any) -> Any:
        return self._answers[command]


def told(nodes: Any, devices: Any = ()) -> Qmp:
    return cast("Qmp", Told(nodes, devices))


def long_name(*files: str) -> str:
    """As QEMU calls what was given its backing file."""
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
    qmp = told(NODES, [device, {"device": "", "qdev": "/machine/peripheral/floppy"}])
    tops, nodes = await read_tops(qmp), await read_nodes(qmp)
    assert {name: node.file for name, node in tops.items()} == {"disk0": "/t"}
    assert [node.name for node in chain_below(nodes, "top")] == ["middle", "base"]


@pytest.mark.parametrize(
    "nodes",
    [
        {},
        None,
        [{"drv": "qcow2"}],
        ["node"],
        [{"node-name": "top", "drv": "qcow2", "file": "json:" + "[" * 100_000}],
        [{"node-name": "top", "drv": "qcow2", "file": 'json:{"file": 5}'}],
        [{"node-name": "top", "drv": "qcow2", "file": "/t", "backing_file": "/nowhere"}],
    ],
)
async def test_what_makes_no_sense_is_no_chain(nodes: Any) -> None:
    with pytest.raises(MachineFailed):
        await read_nodes(told(nodes))


async def test_a_chain_that_goes_in_a_circle_ends() -> None:
    nodes = [{"node-name": "a", "drv": "qcow2", "file": "/a", "backing_file": "/a"}]
    assert len(chain_below(await read_nodes(told(nodes)), "a")) == 1000

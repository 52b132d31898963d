"""The moments of an import at which other operations may end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from bough.hypervisor import bundles
from bough.hypervisor.half_made import HalfMade
from bough.progress import Progress, notice

ARRIVED: Any = SimpleNamespace(id="arrived")


class Keeper:
    """Snapshots of which only used ones outlive the end of another operation."""

    def __init__(self) -> None:
        self.tree = self.store = self
        self.present: set[str] = set()
        self.used: set[str] = set()

    def add(self, _made: object, manifest: Any) -> None:
        self.present.add(manifest.id)

    @contextmanager
    def used_in_background(self, manifest: Any) -> Iterator[None]:
        self.used.add(manifest.id)
        yield
        self.used.discard(manifest.id)

    def collect(self) -> None:
        self.present &= self.used


async def test_the_end_of_another_operation_keeps_the_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper()

    @asynccontextmanager
    async def taken_up(*_: object, **__: object) -> AsyncIterator[Any]:
        async def read() -> str:
            return "files"

        yield SimpleNamespace(name="web", manifest=ARRIVED, saved=None, agent_disk=None, read=read)
        keeper.collect()  # another operation ends here

    async def make(order: Any) -> Any:
        keeper.collect()
        assert order.manifest.id in keeper.present
        record = SimpleNamespace(accelerator_note="emulated")
        return SimpleNamespace(id="new", name=order.name, record=record)

    monkeypatch.setattr(bundles, "taken_up", taken_up)
    parts: Any = SimpleNamespace(
        emit=lambda *_, **__: None, check_free=lambda _: None, make=make, tree=keeper, store=keeper
    )
    made = bundles.Bundles(parts, parts, parts, parts, parts, parts, keeper, parts, HalfMade())
    source: Any = None
    told: list[Progress] = []
    machine = await made.import_bundle(source, name=None, identity="new", cold=False, report=told.append)
    assert machine.name == "web"
    assert told[-1] == notice("emulated")
    assert keeper.used == set()

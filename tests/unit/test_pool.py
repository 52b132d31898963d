"""The choice and the lifetime of kept process images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bough.forks import process_images
from bough.forks.process_images import ProcessImages


class Process:
    is_of_use = True


@pytest.fixture
async def kept(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ProcessImages]:
    monkeypatch.setattr(process_images, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(process_images, "is_memory_short", lambda: False)
    processes = ProcessImages()
    yield processes
    await processes.close()
    assert processes.get("one") is None


def put(kept: ProcessImages, name: str) -> Any:
    process = Process()
    kept.put(name, process)
    return process


async def test_it_is_found_until_its_snapshot_goes(kept: ProcessImages) -> None:
    assert kept.get("one") is None
    assert kept.is_wanted("one", forked=True)
    process = put(kept, "one")
    assert kept.get("one") is process
    assert not kept.is_wanted("one", forked=True)
    kept.drop("one")
    assert kept.get("one") is None


async def test_what_is_of_no_use_is_not_made_again(kept: ProcessImages) -> None:
    put(kept, "one").is_of_use = False
    assert kept.get("one") is None
    kept.refuse("two")
    assert not kept.is_wanted("one", forked=True)
    assert not kept.is_wanted("two", forked=True)


async def test_those_used_last_are_kept(kept: ProcessImages) -> None:
    for name in "abcd":
        put(kept, name)
    assert kept.get("a") is not None
    put(kept, "e")
    assert [name for name in "abcde" if kept.get(name) is not None] == ["a", "c", "d", "e"]


async def test_those_that_were_never_used_make_way(kept: ProcessImages) -> None:
    for name in "abcd":
        put(kept, name)
    assert kept.get("a") is not None
    assert kept.is_wanted("e", forked=False)
    put(kept, "e")
    put(kept, "f")
    assert [name for name in "abcdef" if not kept.is_wanted(name, forked=True)] == ["a", "d", "e", "f"]
    for name in "def":
        assert kept.get(name) is not None
    assert not kept.is_wanted("g", forked=False)
    assert kept.is_wanted("g", forked=True)


async def test_unused_they_go(kept: ProcessImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_images, "_KEPT_UNUSED_S", 0.05)
    put(kept, "one")
    await asyncio.sleep(0.3)
    assert kept.get("one") is None
    put(kept, "one")  # and are watched again
    assert kept.get("one") is not None
    await asyncio.sleep(0.3)
    assert kept.get("one") is not None
    monkeypatch.setattr(process_images, "_KEPT_S", 0.05)
    await asyncio.sleep(0.3)
    assert kept.get("one") is None


async def test_while_memory_is_short_there_are_none(
    kept: ProcessImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(kept, "one")
    monkeypatch.setattr(process_images, "is_memory_short", lambda: True)
    await asyncio.sleep(0.1)
    assert kept.get("one") is None
    assert not kept.is_wanted("one", forked=True)

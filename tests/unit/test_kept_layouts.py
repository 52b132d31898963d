"""What a pull of a container image leaves below downloads/, and for how long."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from bough.errors import BadImage, DownloadFailed
from bough.images.oci.kept_layouts import KeptLayouts
from bough.progress import Progress, Report, ignore_progress

A, B = ("sha256:" + digits * 32 for digits in ("ab", "cd"))


async def receive(kept: KeptLayouts, digest: str, error: BaseException | None = None, *blobs: str) -> None:
    async with kept.hold(digest, "nginx", ignore_progress) as layout:
        (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        for name in blobs:
            (layout / "blobs/sha256" / name).write_bytes(b"x")
        (layout / "oci-put-blob123").write_bytes(b"half")
        if error is not None:
            raise error


def files(downloads: Path) -> list[str]:
    return sorted(path.name for path in downloads.rglob("*") if path.is_file())


@pytest.mark.parametrize("error", [DownloadFailed("x"), asyncio.CancelledError()])
async def test_complete_blobs_stay_after_a_failure(tmp_path: Path, error: BaseException) -> None:
    kept = KeptLayouts(tmp_path / "downloads")
    with pytest.raises(type(error)):
        await receive(kept, A, error, "one")
    assert files(tmp_path) == ["one"]
    await receive(kept, A)
    assert files(tmp_path) == []


@pytest.mark.parametrize(("error", "blobs"), [(BadImage("x"), ["one"]), (DownloadFailed("x"), [])])
async def test_nothing_stays_of_a_bad_image_or_without_blobs(
    tmp_path: Path, error: BaseException, blobs: list[str]
) -> None:
    with pytest.raises(type(error)):
        await receive(KeptLayouts(tmp_path / "downloads"), A, error, *blobs)
    assert not list((tmp_path / "downloads").iterdir())


async def test_the_half_of_a_killed_pull_is_removed(tmp_path: Path) -> None:
    layout = tmp_path / f"container-{'ab' * 32}"
    layout.mkdir()
    (layout / "oci-put-blob9").write_bytes(b"half")
    async with KeptLayouts(tmp_path).hold(A, "nginx", ignore_progress) as held:
        assert held == layout
        assert not list(held.iterdir())


async def test_old_layouts_are_swept_but_not_those_in_use(tmp_path: Path) -> None:
    kept = KeptLayouts(tmp_path)
    old, other = tmp_path / f"container-{'cd' * 32}", tmp_path / "abc.part"
    old.mkdir()
    other.write_bytes(b"")
    os.utime(old, (1, 1))
    async with kept.hold(A, "nginx", ignore_progress) as held:
        assert not old.exists()
        os.utime(held, (1, 1))
        kept.sweep(older_than_s=0)
        assert held.exists()
    assert list(tmp_path.iterdir()) == [other]


async def test_one_pull_of_an_image_at_a_time(tmp_path: Path) -> None:
    kept, told = KeptLayouts(tmp_path), []

    def report(step: Progress) -> None:
        told.append(step.step)

    async with kept.hold(A, "nginx", ignore_progress), kept.hold(B, "nginx", report):
        assert not told
        waiting = asyncio.ensure_future(receive_with(kept, report))
        while not told:  # noqa: ASYNC110 (the report is the event)
            await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    assert told == ["waiting for another pull of nginx"]


async def receive_with(kept: KeptLayouts, report: Report) -> None:
    async with kept.hold(A, "nginx", report):
        pass

"""Images by digest with labels on top, on a real file system."""

from __future__ import annotations

from pathlib import Path

import pytest

from bough.errors import Conflict, NotFound
from bough.images.store import ImageManifest, ImageStore
from bough.paths import Home

A, B = "a" * 64, "a" * 6 + "b" * 58


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    home = Home(tmp_path / "home", tmp_path / "run" / "home")
    home.create()
    return ImageStore(home)


def add(store: ImageStore, digest: str, label: str) -> None:
    made = store.home.incoming / f"image-{digest}"
    made.mkdir()
    (made / "disk.raw").write_bytes(b"disk")
    manifest = ImageManifest(
        digest=digest,
        os="debian",
        version="12",
        arch="x86_64",
        firmware=("bios",),
        size_bytes=4,
        created=f"2026-01-0{1 + (digest == B)}",
        label=label,
        recipe="r",
    )
    store.add(made, manifest, label)


def test_found_by_label_digest_and_prefix(store: ImageStore) -> None:
    add(store, A, "debian:12")
    assert {store.resolve(reference).digest for reference in ("debian:12", A, A[:6])} == {A}
    assert store.path(A).stat().st_mode & 0o777 == 0o444
    assert not list(store.home.incoming.iterdir())


def test_a_short_or_shared_prefix_is_no_name(store: ImageStore) -> None:
    add(store, A, "debian:12")
    add(store, B, "debian:13")
    with pytest.raises(NotFound):
        store.resolve("aaaaa")
    with pytest.raises(Conflict):
        store.resolve("aaaaaa")


def test_the_nearest_label_is_told(store: ImageStore) -> None:
    add(store, A, "debian:12")
    with pytest.raises(NotFound) as caught:
        store.resolve("debain:12")
    assert caught.value.hint == "did you mean 'debian:12'?"


def test_a_label_moves_and_prune_takes_what_has_none(store: ImageStore) -> None:
    add(store, A, "debian:12")
    add(store, B, "debian:12")
    assert store.resolve("debian:12").digest == B
    assert store.prune({A})[0] == []
    assert store.prune(set())[0] == [A]
    assert [entry.manifest.digest for entry in store.entries()] == [B]


def test_the_same_again_is_kept_once(store: ImageStore) -> None:
    add(store, A, "debian:12")
    add(store, A, "mine")
    assert [entry.labels for entry in store.entries()] == [("debian:12", "mine")]


def test_deleted_with_every_label(store: ImageStore) -> None:
    add(store, A, "debian:12")
    store.delete("debian:12")
    assert store.entries() == []
    assert not list(store.home.incoming.iterdir())

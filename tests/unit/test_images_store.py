"""Images by digest with labels on top, on a real file system."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from bough.errors import Conflict, NotFound
from bough.images.disk import digest_image
from bough.images.store import ImageManifest, ImageStore, split_label
from bough.paths import Home

LASTING = {
    **{"os": "debian", "version": "12", "arch": "x86_64", "firmware": ["bios"], "size_bytes": 512},
    "root_partition": None,
}
A, B = "a" * 64, "a" * 6 + "b" * 58


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    home = Home(tmp_path / "home")
    home.create()
    return ImageStore(home)


def add(store: ImageStore, digest: str, label: str, arch: str = "x86_64") -> None:
    made = store.home.incoming / f"image-{digest}"
    made.mkdir()
    (made / "disk.raw").write_bytes(b"disk")
    manifest = ImageManifest(
        digest=digest,
        os="debian",
        version="12",
        arch=arch,
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


C = "c" * 64


def test_a_label_for_each_architecture(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    add(store, A, "debian:12", "aarch64")
    assert store.resolve("debian:12").digest == A  # the only image
    with pytest.raises(NotFound, match="is for aarch64, and not for x86_64"):
        store.resolve("debian:12", "x86_64")
    add(store, B, "debian:12")
    add(store, C, "debian:12", "riscv64")
    assert store.resolve("debian:12").digest == B  # the image for this host
    found = {"aarch64": A, "x86_64": B, "riscv64": C}
    assert {arch: store.resolve("debian:12", arch).digest for arch in found} == found
    assert store.resolve("debian:12@arm64").digest == A
    assert {entry.manifest.arch: entry.labels for entry in store.entries()} == dict.fromkeys(
        found, ("debian:12",)
    )
    store.delete("debian:12@x86_64")
    assert store.resolve("debian:12", "riscv64").digest != B
    with pytest.raises(Conflict, match="aarch64, riscv64"):
        store.resolve("debian:12")


def test_a_label_moves_within_its_architecture(store: ImageStore) -> None:
    add(store, A, "web", "aarch64")
    add(store, B, "web", "x86_64")
    add(store, C, "web", "aarch64")
    assert store.resolve("web", "aarch64").digest == C
    assert store.resolve("web", "x86_64").digest == B
    assert store.resolve(A).digest == A


def test_labels_are_split_at_an_architecture_only() -> None:
    assert split_label("debian:12@arm64") == ("debian:12", "aarch64")
    for whole in ("debian:12", "me@home", "@arm64"):
        assert split_label(whole) == (whole, None)


def test_a_prefix_that_images_of_two_architectures_share(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    add(store, A, "one")
    add(store, B, "two", "aarch64")
    with pytest.raises(Conflict, match="2 digests match"):
        store.resolve("aaaaaa")
    assert store.resolve("aaaaaa", "aarch64").digest == B
    assert store.knows("aaaaaa")
    assert not store.knows("three")


def test_a_manifest_of_earlier_versions_says_yes_or_no_about_its_agent(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"x" * 512)
    for old, new in ((True, "installed"), (False, None)):
        told = {**LASTING, "agent": old}
        rest = dict.fromkeys(("digest", "created", "label", "recipe"), "")
        manifest = ImageManifest.model_validate({**told, **rest})
        assert manifest.agent == new
        assert digest_image(disk, manifest.model_dump(mode="json")) == digest_image(disk, told)
    assert digest_image(disk, {**LASTING, "agent": "disk"}) != digest_image(disk, {**LASTING, "agent": False})

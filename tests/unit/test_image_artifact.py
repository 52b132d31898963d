"""Images as artifacts: from one store through a layout to another store; and words of a hostile registry."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bough.artifacts.document import Description, Part, parse_description, parse_manifest
from bough.artifacts.layout import read_blob
from bough.artifacts.writing import Written, write_layout
from bough.errors import BadImage
from bough.images.artifact import add_images, check_wanted, describe_images, parse_images, parts_of
from bough.images.artifact import related_images as related
from bough.images.disk import digest_image
from bough.images.store import ImageManifest, ImageStore
from bough.paths import Home
from bough.progress import ignore_progress
from bough.spec.container import Container
from bough.units import MIB

SIZE = 64 * MIB
CONTAINER = Container(reference="docker://docker.io/library/app:1", digest="sha256:" + "c" * 64, cmd=("run",))
NO_JAIL: Any = None


def make_store(root: Path) -> ImageStore:
    home = Home(root)
    home.create()
    return ImageStore(home)


def add_image(store: ImageStore, label: str | None, **more: Any) -> ImageManifest:
    made = store.home.incoming / f"image-{os.urandom(4).hex()}"
    made.mkdir()
    with (made / "disk.raw").open("wb") as stream:
        stream.truncate(SIZE)
        os.pwrite(stream.fileno(), os.urandom(MIB), 0)
        os.pwrite(stream.fileno(), os.urandom(8192), 40 * MIB)
    lasting: dict[str, Any] = {"os": "debian", "version": "12", "arch": "x86_64", "firmware": ["bios"]}
    lasting |= {"size_bytes": SIZE, "root_partition": 3, "agent": None, **more}
    digest = digest_image(made / "disk.raw", lasting)
    kept = {"created": "2026-01-01", "label": label or "", "recipe": "the recipe", "origin": {"source": "/a"}}
    manifest = ImageManifest.model_validate(lasting | kept | {"digest": digest, "packages": {"apt": "2.6.1"}})
    store.add(made, manifest, label)
    return manifest


def push(store: ImageStore, image: ImageManifest, layout: Path) -> Written:
    layout.mkdir()
    images = related(store, image)
    return write_layout(layout, "image", describe_images(images), parts_of(store, images), lambda _: None)


async def pull(store: ImageStore, layout: Path, written: Written) -> list[ImageManifest]:
    blobs = layout / "blobs"
    manifest = parse_manifest(read_blob(blobs, written.manifest))
    description = parse_description(read_blob(blobs, manifest.description), manifest)
    images = parse_images(description)
    work = store.home.incoming / "work"
    work.mkdir()
    await add_images(store, images, blobs, manifest, description, work, NO_JAIL, ignore_progress)
    work.rmdir()
    return images


async def test_from_one_store_to_another(tmp_path: Path) -> None:
    ours, theirs = make_store(tmp_path / "ours"), make_store(tmp_path / "theirs")
    further = add_image(ours, None, disk_bus="scsi")
    image = add_image(
        ours, "web", agent="installed", disks=[further.digest], container=CONTAINER.model_dump(mode="json")
    )
    written = push(ours, image, tmp_path / "layout")
    text = b"".join(path.read_bytes() for path in (tmp_path / "layout/blobs/sha256").iterdir())
    assert b"the recipe" not in text, "a recipe stays at home"
    pulled = await pull(theirs, tmp_path / "layout", written)
    assert [one.digest for one in pulled] == [image.digest, further.digest]
    there = theirs.resolve(image.digest)
    assert (there.packages, there.container, there.recipe) == (image.packages, CONTAINER, "")
    assert there.origin is None
    for one in (image, further):
        path = theirs.path(one.digest)
        assert path.read_bytes() == ours.path(one.digest).read_bytes()
        assert path.stat().st_blocks * 512 < 2 * MIB, "its holes are lost"
    assert theirs.entries()[0].labels == ()
    assert theirs.find_recipe("the recipe") is None


async def test_a_disk_that_was_exchanged(tmp_path: Path) -> None:
    """The chunks are as their digests say; the disk is not as the image's digest says."""
    ours, theirs = make_store(tmp_path / "ours"), make_store(tmp_path / "theirs")
    one, other = add_image(ours, "one"), add_image(ours, "other")
    (tmp_path / "layout").mkdir()
    content, parts = describe_images([one]), parts_of(ours, [other])
    written = write_layout(tmp_path / "layout", "image", content, parts, lambda _: None)
    with pytest.raises(BadImage, match=f"not {one.digest[:12]}"):
        await pull(theirs, tmp_path / "layout", written)
    assert theirs.entries() == []


Spoil = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda i: i.pop("digest"),
        lambda i: i.update(digest="../../etc"),
        lambda i: i.update(arch="../../x"),
        lambda i: i.update(firmware=["coreboot"]),
        lambda i: i.update(size_bytes=512),
        lambda i: i.update(size_bytes=-1),
        lambda i: i.update(root_partition=0),
        lambda i: i.update(os="\x1b[2J"),
        lambda i: i.update(version="1" * 1000),
        lambda i: i.update(packages={"apt": "\x1b]0;x"}),
        lambda i: i.update(packages={str(n): "1" for n in range(30_000)}),
        lambda i: i.update(notes=[{"text": "a\nb"}]),
        lambda i: i.update(notes=[{"text": "a"}] * 100),
        lambda i: i.update(linux={"root": "\x1b", "file_system": "", "title": "", "init": "", "libc": ""}),
        lambda i: i.update(disks=["a" * 64]),
        lambda i: i.update(disks=["/etc/passwd"]),
        lambda i: i.update(disk_bus="floppy"),
        lambda i: i.update(container=[]),
        lambda i: i.update(media="tape"),
    ],
)
def test_words_of_a_hostile_registry(tmp_path: Path, spoil: Spoil) -> None:
    image = add_image(make_store(tmp_path / "ours"), "web")
    content = describe_images([image])
    part = Part(name="disk0", size_bytes=SIZE)
    parse_images(Description(chunk_bytes=4 * MIB, parts=(part,), content=content))
    spoil(content["images"][0])
    with pytest.raises(BadImage, match="altered"):
        parse_images(Description(chunk_bytes=4 * MIB, parts=(part,), content=content))


@pytest.mark.parametrize("images", [None, [], {}, ["x"], [[]], [{}] * 100])
def test_no_list_of_images(images: Any) -> None:
    part = Part(name="disk0", size_bytes=SIZE)
    with pytest.raises(BadImage):
        parse_images(Description(chunk_bytes=4 * MIB, parts=(part,), content={"images": images}))


def test_unknown_words_of_a_registry_are_dropped(tmp_path: Path) -> None:
    image = add_image(make_store(tmp_path / "ours"), "web")
    content = describe_images([image])
    content["images"][0] |= {"recipe": "x", "label": "debian:12", "efi_loader": {"path": "x"}, "more": 1}
    part = Part(name="disk0", size_bytes=SIZE)
    found = parse_images(Description(chunk_bytes=4 * MIB, parts=(part,), content=content))[0]
    assert (found.recipe, found.label, found.efi_loader, found.model_extra) == ("", "", None, {})


def test_an_image_for_another_processor(tmp_path: Path) -> None:
    image = add_image(make_store(tmp_path / "ours"), "web")
    check_wanted(image, None)
    check_wanted(image, "x86_64")
    with pytest.raises(BadImage, match="not for aarch64"):
        check_wanted(image, "aarch64")

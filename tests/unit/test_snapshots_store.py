"""The choice of overlays to remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from bough.errors import Conflict, NotFound
from bough.machines.record import FirstBoot, Hardware
from bough.paths import Home, SnapshotPaths
from bough.snapshots.store import SnapshotDisk, SnapshotManifest, SnapshotStore
from bough.snapshots.tree import SnapshotTree
from bough.spec import parse_spec


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    home = Home(tmp_path / "home")
    home.create()
    store = SnapshotStore(home)
    made = SnapshotPaths(home.incoming / "aaaaaaaaaaaa")
    made.root.mkdir()
    hardware = Hardware(
        arch="x86_64", machine_type="pc-q35-7.2", cpu_model="max", firmware="bios",
        uuid="u", vmgenid="v", nics=[], uid=None,
    )  # fmt: skip
    disk = SnapshotDisk(size_bytes=1, layers=("snapshots/aaaaaaaaaaaa/disks/0.qcow2", "images/x/disk.raw"))
    manifest = SnapshotManifest(
        id="aaaaaaaaaaaa", state="layers", machine="bbbbbbbbbbbb", machine_name="web",
        spec=parse_spec({"image": "x"}), image_digest="x", image_agent=True, hardware=hardware,
        first_boot=FirstBoot(), disks=(disk,),
    )  # fmt: skip
    store.add(made, manifest)
    return store


def test_a_layer_stays_while_something_stands_on_it(store: SnapshotStore) -> None:
    assert store.collect(["snapshots/aaaaaaaaaaaa/disks/0.qcow2"]) == []
    assert store.collect([]) == ["aaaaaaaaaaaa"]
    assert not store.paths("aaaaaaaaaaaa").root.exists()


def test_nothing_goes_while_nobody_knows_what_a_machine_stands_on(store: SnapshotStore) -> None:
    store.keep_all("cccccccccccc")
    assert store.collect([]) == []
    assert store.paths("aaaaaaaaaaaa").manifest.exists()


def test_what_was_written_of_a_memory_goes_with_the_service(store: SnapshotStore) -> None:
    """The service was killed before the manifest named the memory file."""
    paths = store.paths("aaaaaaaaaaaa")
    paths.disks.mkdir()
    paths.disk(0).touch()
    for path in (paths.memory, paths.extents):
        path.touch()
    tree = SnapshotTree(store.home)
    tree.store.open()
    tree.settle()
    assert not paths.memory.exists()
    assert not paths.extents.exists()
    assert paths.disk(0).exists()


def test_one_that_is_just_being_taken_stays(store: SnapshotStore) -> None:
    tree = SnapshotTree(store.home)
    tree.store.open()
    manifest = tree.store.get("aaaaaaaaaaaa")
    with tree.using(manifest):
        assert tree.collect([]) == []
    assert tree.collect([]) == ["aaaaaaaaaaaa"]


def test_a_part_of_a_project_is_not_a_snapshot_by_itself(store: SnapshotStore) -> None:
    whole = store.get("aaaaaaaaaaaa").model_copy(update={"state": "whole", "part_of": "dddddddddddd"})
    store.update(whole)
    assert store.all() == []
    assert store.parts() == [whole]
    assert store.collect([]) == []
    with pytest.raises(Conflict, match="is a part of snapshot dddddddddddd of a project") as told:
        store.resolve("aaaaaaaaaaaa")
    assert "bough fork dddddddddddd" in (told.value.hint or "")
    with pytest.raises(NotFound):
        store.resolve("aaaaaa")
    store.retire("aaaaaaaaaaaa")
    assert store.parts() == []
    assert store.collect([]) == ["aaaaaaaaaaaa"]

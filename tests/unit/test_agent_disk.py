"""The agent disks of a home: by digest, one per recipe, kept while a machine or a snapshot names them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from bough.audit.files import Look, audit_files
from bough.errors import BadBundle, BuildFailed, HostLacks
from bough.hypervisor.agent_disks import AgentDisks
from bough.hypervisor.half_made import HalfMade
from bough.images.agent_disk import store as store_module
from bough.images.agent_disk.build import BuiltDisk
from bough.images.agent_disk.recipe import MOST_BYTES, agent_disk_recipe
from bough.images.agent_disk.store import AgentDisk, AgentDiskStore
from bough.images.apt import Mirrors
from bough.images.note import ExportNote, parse_note
from bough.images.platforms import PLATFORMS
from bough.machines.agent_disk import plan_agent_disk
from bough.machines.record import Hardware, MachineRecord
from bough.machines.state import State
from bough.paths import Home
from bough.progress import Progress, Report
from bough.spec import parse_spec

ARCH = "x86_64"


def content(text: str) -> bytes:
    return b"hsqs" + text.encode()


def digest_of(text: str) -> str:
    return hashlib.sha256(content(text)).hexdigest()


class Builds:
    """The builds of a test instead of real ones."""

    def __init__(self) -> None:
        self.count = 0
        self.text = "new"
        self.error: HostLacks | None = None

    async def build(self, recipe: object, incoming: Path, report: Report, mirrors: Mirrors) -> BuiltDisk:
        self.count += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return BuiltDisk(content(self.text), {})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def store(home: Home) -> AgentDiskStore:
    return AgentDiskStore(home)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(store_module, "build_agent_disk", builds.build)
    return builds


def make_record(digest: str | None, state: State = State.STOPPED) -> MachineRecord:
    hardware = Hardware(
        arch=ARCH, machine_type="pc-q35-7.2", cpu_model="max", firmware="bios", uuid="", vmgenid="", nics=[],
        uid=None,
    )  # fmt: skip
    return MachineRecord(
        id="0123456789ab", name="web", spec=parse_spec({"image": "x"}), image_digest="x", image_agent=True,
        agent_disk=digest, hardware=hardware, created="", state=state,
    )  # fmt: skip


# -- the recipe -----------------------------------------------------------------------------------------


def test_each_architecture_with_a_kernel_has_a_recipe() -> None:
    keys = {agent_disk_recipe(arch).key() for arch in PLATFORMS}
    assert len(keys) == len(PLATFORMS)
    with pytest.raises(HostLacks, match="'m68k'") as caught:
        agent_disk_recipe("m68k")
    assert "--no-agent" in str(caught.value.hint)


# -- the store ------------------------------------------------------------------------------------------


async def test_built_once_and_found_by_the_recipe(store: AgentDiskStore, builds: Builds, home: Home) -> None:
    assert store.newest(ARCH) is None
    digest = await store.provide(ARCH, lambda _: None)
    assert digest == digest_of("new") == store.newest(ARCH)
    assert await AgentDiskStore(home).provide(ARCH, lambda _: None) == digest
    assert builds.count == 1
    path = store.path(ARCH, digest)
    assert path.read_bytes() == content("new")
    assert path.stat().st_mode & 0o777 == 0o444


async def test_two_at_once_build_one(home: Home, builds: Builds) -> None:
    stores = [AgentDiskStore(home) for _ in range(3)]
    digests = await asyncio.gather(*(store.provide(ARCH, lambda _: None) for store in stores))
    assert set(digests) == {digest_of("new")}
    assert builds.count == 1


async def test_a_lost_file_or_key_means_another_build(
    store: AgentDiskStore, builds: Builds, home: Home
) -> None:
    digest = await store.provide(ARCH, lambda _: None)
    store.path(ARCH, digest).unlink()
    assert await store.provide(ARCH, lambda _: None) == digest
    for damage in (b"{", b"[]", b"7", b'{"x": 7}'):
        home.agent_disk_keys.write_bytes(damage)
        assert store.newest(ARCH) is None
        assert await store.provide(ARCH, lambda _: None) == digest
    assert builds.count == 6


def test_content_is_bounded_and_known(store: AgentDiskStore) -> None:
    for wrong in (b"", b"MZ", b"hsqs" + bytes(MOST_BYTES)):
        with pytest.raises(BuildFailed):
            store.add(ARCH, wrong)
        with pytest.raises(BadBundle, match="squashfs"):
            store.take_in(ARCH, hashlib.sha256(wrong).hexdigest(), wrong)
    with pytest.raises(BadBundle, match="digest"):
        store.take_in(ARCH, digest_of("a"), content("b"))
    assert store.all() == []
    store.take_in(ARCH, digest_of("a"), content("a"))
    assert store.all() == [AgentDisk(ARCH, digest_of("a"))]
    assert store.newest(ARCH) is None, "a disk of a bundle is no machine's but the bundle's"


async def test_the_newest_the_needed_and_the_used_are_kept(
    store: AgentDiskStore, builds: Builds, home: Home
) -> None:
    newest = await store.provide(ARCH, lambda _: None)
    needed, used, old = (store.add(ARCH, content(text)) for text in ("needed", "used", "old"))
    keys = json.loads(home.agent_disk_keys.read_bytes())
    home.agent_disk_keys.write_text(json.dumps({**keys, "an old recipe": old}))
    (home.agent_disks / ".x86_64.lock").touch()
    with store.using(ARCH, used):
        assert store.collect({AgentDisk(ARCH, needed)}) == [AgentDisk(ARCH, old)]
        assert {disk.digest for disk in store.all()} == {newest, needed, used}
    assert json.loads(home.agent_disk_keys.read_bytes()) == keys
    assert {disk.digest for disk in store.collect(())} == {needed, used}
    assert store.newest(ARCH) == newest


# -- boots ----------------------------------------------------------------------------------------------


def make_use_case(store: AgentDiskStore) -> AgentDisks:
    return AgentDisks(store, HalfMade(), None, None)  # type: ignore[arg-type]


async def test_a_boot_takes_the_newest_disk(store: AgentDiskStore, builds: Builds) -> None:
    use_case = make_use_case(store)
    old = store.add(ARCH, content("old"))
    assert await use_case.for_boot(make_record(None), lambda _: None) is None
    assert builds.count == 0
    assert await use_case.for_boot(make_record(old), lambda _: None) == digest_of("new")
    assert await use_case.for_boot(make_record("f" * 64), lambda _: None) == digest_of("new")
    assert builds.count == 1


async def test_without_a_new_disk_a_machine_boots_with_its_own(store: AgentDiskStore, builds: Builds) -> None:
    use_case, told = make_use_case(store), list[Progress]()
    own = store.add(ARCH, content("own"))
    builds.error = HostLacks("no network here")
    assert await use_case.for_boot(make_record(own), told.append) == own
    assert "no network here" in str(told[-1])
    assert await use_case.for_boot(make_record(own), told.append) == own
    assert builds.count == 1, "the next boots do not wait for another failure"
    with pytest.raises(HostLacks, match="no network"):
        await use_case.for_boot(make_record("f" * 64), told.append)
    builds.error = None
    assert await use_case.for_boot(make_record("f" * 64), told.append) == digest_of("new")
    assert await use_case.for_boot(make_record(own), told.append) == digest_of("new")


def test_the_disk_is_the_last_of_the_plan_and_read_only(store: AgentDiskStore, home: Home) -> None:
    assert plan_agent_disk(make_record(None), home) == ()
    digest = store.add(ARCH, content("a"))
    (disk,) = plan_agent_disk(make_record(digest), home)
    assert (disk.id, disk.serial, disk.format, disk.read_only) == ("agentdisk", "bough-agent", "raw", True)
    assert Path(disk.path) == store.path(ARCH, digest)


# -- elsewhere ------------------------------------------------------------------------------------------


def test_the_note_of_an_export_says_disk_only_if_it_is_so() -> None:
    assert "agent_disk" not in ExportNote(agent=True).render(), "an earlier bough reads the note"
    note = parse_note(ExportNote(agent=True, agent_disk=True).render())
    assert note is not None
    assert note.agent_disk


async def test_the_audit_finds_strays_damage_and_missing_disks(
    store: AgentDiskStore, builds: Builds, home: Home
) -> None:
    digest = await store.provide(ARCH, lambda _: None)
    record = make_record("f" * 64, State.RUNNING)
    paths = home.machine(record.id)
    for directory in (paths.root, paths.disks, paths.log):
        directory.mkdir(mode=0o711)
    record.write(paths)

    def kinds() -> set[str]:
        findings = audit_files(Look(home, live=[record.id]))
        return {finding.kind for finding in findings if "agent" in f"{finding.kind} {finding.path}"}

    assert kinds() == {"agent-disk-missing"}
    record.state = State.STOPPED
    record.write(paths)
    assert kinds() == set()
    store.path(ARCH, digest).chmod(0o644)
    store.path(ARCH, digest).write_bytes(b"other")
    (home.agent_disks / "notes").touch()
    assert kinds() == {"agent-disk-damaged", "mode", "stray"}


def test_a_start_without_its_disk_says_what_to_do(home: Home) -> None:
    assert plan_agent_disk(make_record("f" * 64), home), "a boot will choose another one"
    with pytest.raises(HostLacks, match="'web' knows is missing") as caught:
        plan_agent_disk(make_record("f" * 64, State.STARTING), home)
    assert "--cold" in str(caught.value.hint)

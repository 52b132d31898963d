"""Images and machines in a registry: Debian's docker-registry, and skopeo."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bough.artifacts.document import LEAST_CHUNK_BYTES, config_type
from bough.errors import BadImage, BoughError, DownloadFailed, InvalidInput, NoSpace, NotFound
from bough.hypervisor.artifacts import Artifacts
from bough.hypervisor.half_made import HalfMade
from bough.images.artifact_pull import ImageArtifacts
from bough.images.disk import digest_image
from bough.images.oci import artifacts as oci_artifacts
from bough.images.oci.kept_layouts import KeptLayouts
from bough.images.oci.manifest import ContainerManifest, read_manifest
from bough.images.oci.skopeo import Skopeo
from bough.images.store import ImageManifest, ImageStore
from bough.paths import Home
from bough.progress import ignore_progress
from bough.spec.container_name import parse_container_name
from tests.container_registry import AUTH, Registry, has_registry, serve_registry

pytestmark = pytest.mark.skipif(not has_registry(), reason="no skopeo or docker-registry")
CHUNK = LEAST_CHUNK_BYTES
SIZE = 64 * CHUNK
#: Chunks with data in the disk of `make_image`.
CHUNKS = 12


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="bough-registry-", dir="/var/tmp"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def registry(place: Path) -> Iterator[Registry]:
    with serve_registry(place / "registry") as found:
        yield found


class House:
    """A home that pushes and pulls, without a service."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.home = Home.at(root)
        self.home.create()
        self.store = ImageStore(self.home)
        self.kept = KeptLayouts(self.home.downloads)
        source: Any = SimpleNamespace(using=lambda _: nullcontext())
        bundles: Any = SimpleNamespace(knows=lambda reference: reference == "machine")
        self.artifacts = Artifacts(self.home, self.store, source, bundles, self.kept, HalfMade())

    async def push(self, reference: str, target: str) -> str:
        done = await self.artifacts.push_image(reference, target, report=ignore_progress)
        assert list(self.home.incoming.iterdir()) == []
        return str(done["digest"])

    async def pull(self, text: str, label: str | None = None) -> ImageManifest:
        name = parse_container_name(text)
        raw = await Skopeo(name, "x86_64", self.home.incoming).read_manifest()
        manifest = read_manifest(raw, text)
        assert isinstance(manifest, ContainerManifest)
        reader = ImageArtifacts(self.store, self.kept)
        assert reader.reads(manifest)
        return await reader.pull(name, manifest, "x86_64", label or str(name), ignore_progress)

    def check_clean(self, *, kept: int = 0) -> None:
        assert list(self.home.incoming.iterdir()) == []
        downloads = list(self.home.downloads.iterdir()) if self.home.downloads.is_dir() else []
        assert len(downloads) == kept


@pytest.fixture
def ours(place: Path) -> House:
    return House(place / f"ours-{os.urandom(4).hex()}")


@pytest.fixture
def theirs(place: Path) -> House:
    return House(place / f"theirs-{os.urandom(4).hex()}")


def make_image(house: House, label: str, *, seed: int = 0, **more: Any) -> ImageManifest:
    """Add an image of 256 MiB with 12 MiB of data. Another seed changes one chunk."""
    made = house.home.incoming / f"image-{os.urandom(4).hex()}"
    made.mkdir()
    with (made / "disk.raw").open("wb") as stream:
        stream.truncate(SIZE)
        for number in range(CHUNKS):
            words = f"{number}-{seed if number == 5 else 0}".encode()
            os.pwrite(stream.fileno(), (words * (1 << 20))[: 1 << 20], number * 5 * CHUNK)
    lasting: dict[str, Any] = {"os": "debian", "version": "12", "arch": "x86_64", "firmware": ["bios"]}
    lasting |= {"size_bytes": SIZE, "root_partition": 3, "agent": "installed", **more}
    digest = digest_image(made / "disk.raw", lasting)
    rest = {"digest": digest, "created": "2026-01-01", "label": label, "recipe": "r"}
    manifest = ImageManifest.model_validate(lasting | rest)
    house.store.add(made, manifest, label)
    return manifest


async def test_there_and_back(registry: Registry, ours: House, theirs: House) -> None:
    image = make_image(ours, "web")
    name = f"docker://{registry.host}/team/web:1"
    digest = await ours.push("web", name)
    there = await theirs.pull(name)
    assert (there.digest, there.recipe, there.agent) == (image.digest, "", "installed")
    assert theirs.store.path(image.digest).read_bytes() == ours.store.path(image.digest).read_bytes()
    assert theirs.store.resolve(name).digest == image.digest
    assert (there.origin or {})["source"] == f"docker://{registry.host}/team/web@{digest}"
    theirs.check_clean()
    by_digest = await theirs.pull(f"docker://{registry.host}/team/web@{digest}", "pinned")
    assert by_digest.digest == theirs.store.resolve("pinned").digest == image.digest
    assert await ours.push("web", name) == digest, "the same image has the same manifest"


async def test_only_changed_chunks_are_sent(registry: Registry, ours: House, theirs: House) -> None:
    """Count the blobs: one chunk, the description and the manifest are new."""
    make_image(ours, "one", seed=1)
    make_image(ours, "two", seed=2)
    name = f"docker://{registry.host}/changed"
    await ours.push("one", f"{name}:1")
    before = registry.blobs()
    stamps = {path: path.stat().st_mtime_ns for path in before.values()}
    await ours.push("two", f"{name}:2")
    new = {digits: path for digits, path in registry.blobs().items() if digits not in before}
    assert len(new) == 3
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert (await theirs.pull(f"{name}:2")).digest == ours.store.resolve("two").digest


async def test_a_broken_pull_resumes(
    registry: Registry, ours: House, theirs: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(ours, "web", seed=3)
    name = f"docker://{registry.host}/resumed:1"
    await ours.push("web", name)
    copy = Skopeo.copy
    seen = []

    async def broken(self: Skopeo, layout: Path, *more: Any, **options: Any) -> None:
        await copy(self, layout, *more, **options)
        blobs = list((layout / "blobs/sha256").iterdir())
        seen.append({path.name: path.stat().st_ino for path in blobs})
        if len(seen) == 1:
            max(blobs, key=lambda path: path.stat().st_size).unlink()
            raise DownloadFailed("the network is down")

    monkeypatch.setattr(Skopeo, "copy", broken)
    with pytest.raises(DownloadFailed):
        await theirs.pull(name)
    theirs.check_clean(kept=1)
    assert (await theirs.pull(name)).digest == image.digest
    theirs.check_clean()
    same = [digits for digits, inode in seen[0].items() if seen[1].get(digits) == inode]
    assert len(same) >= CHUNKS - 1, "the kept blobs were fetched again"


async def test_what_is_wrong_with_a_name(registry: Registry, ours: House, theirs: House) -> None:
    make_image(ours, "web")
    wrong = {
        "web:2": "not the name of a place in a registry",
        "oci:/tmp/layout": "not in a registry",
        f"docker://{registry.host}/web@sha256:{'a' * 64}": "names a digest",
        f"docker://{registry.host}/WEB": "not the name of a repository",
    }
    for target, says in wrong.items():
        with pytest.raises(InvalidInput, match=says):
            await ours.push("web", target)
    with pytest.raises(NotFound, match="nothing"):
        await ours.push("nothing", f"docker://{registry.host}/web:1")
    with pytest.raises(NotFound, match="no image is called 'machine'") as caught:
        await ours.push("machine", f"docker://{registry.host}/web:1")
    assert f"bough export machine docker://{registry.host}/web:1" in str(caught.value.hint)
    with pytest.raises(NotFound, match="has no image"):
        await theirs.pull(f"docker://{registry.host}/never/pushed:1")
    ours.check_clean()
    theirs.check_clean()


async def test_a_registry_that_cannot_be_reached(ours: House) -> None:
    make_image(ours, "web")
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        await ours.push("web", "docker://127.0.0.1:1/web:1")
    ours.check_clean()


async def test_a_registry_with_a_login(
    place: Path, ours: House, theirs: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = make_image(ours, "web")
    with serve_registry(tmp_path / "registry", with_login=True) as closed:
        name = f"docker://{closed.host}/web:1"
        for account in ("", base64.b64encode(b"me:wrong").decode(), AUTH):
            auths = {closed.host: {"auth": account}} if account else {}
            file = tmp_path / "auth.json"
            file.write_text(json.dumps({"auths": auths}))
            monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
            if account == AUTH:
                await ours.push("web", name)
                assert (await theirs.pull(name)).digest == image.digest
            else:
                with pytest.raises(DownloadFailed, match="is refused") as caught:
                    await ours.push("web", name)
                assert "skopeo login" in str(caught.value.hint)
            ours.check_clean()


async def test_an_image_is_no_machine(registry: Registry, ours: House) -> None:
    make_image(ours, "web")
    name = f"docker://{registry.host}/kinds:image"
    await ours.push("web", name)
    with pytest.raises(InvalidInput, match="is an image") as caught:
        await ours.artifacts.pull_machine(name, report=ignore_progress)
    assert f"bough image pull {name}" in str(caught.value.hint)


async def test_a_full_disk(
    registry: Registry, ours: House, theirs: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image(ours, "web")
    name = f"docker://{registry.host}/full:1"
    await ours.push("web", name)
    monkeypatch.setattr(oci_artifacts, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(NoSpace, match="needs"):
        await theirs.pull(name)
    theirs.check_clean()


async def test_a_cancelled_push_and_pull_leave_nothing(
    registry: Registry, ours: House, theirs: House
) -> None:
    make_image(ours, "web", seed=9)
    name = f"docker://{registry.host}/cancelled:1"
    for _ in range(4):
        task = asyncio.create_task(ours.push("web", name))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ours.check_clean()
    await ours.push("web", name)
    task = asyncio.create_task(theirs.pull(name))
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert list(theirs.home.incoming.iterdir()) == []


# -- a hostile registry ---------------------------------------------------------------------------


def rewrite(registry: Registry, digest: str, change: Any) -> str:
    """Put a changed manifest, with a changed description, into the registry's files; return its digest."""
    import hashlib

    blobs = registry.blobs()
    manifest = json.loads(blobs[digest.partition(":")[2]].read_bytes())
    config = json.loads(blobs[manifest["config"]["digest"].partition(":")[2]].read_bytes())
    change(manifest, config)

    def put(data: bytes) -> str:
        digits = hashlib.sha256(data).hexdigest()
        path = registry.root / f"blobs/sha256/{digits[:2]}/{digits}/data"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        for kind in ("_layers", "_manifests/revisions"):
            link = registry.root / f"repositories/hostile/{kind}/sha256/{digits}/link"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.write_text(f"sha256:{digits}")
        return f"sha256:{digits}"

    text = json.dumps(config).encode()
    manifest["config"] |= {"digest": put(text), "size": len(text)}
    return put(json.dumps(manifest).encode())


async def test_a_hostile_registry(registry: Registry, ours: House, theirs: House) -> None:
    make_image(ours, "web", seed=4)
    digest = await ours.push("web", f"docker://{registry.host}/hostile:1")

    def newer(manifest: dict[str, Any], _: Any) -> None:
        manifest["config"]["mediaType"] = config_type("image").replace("v1", "v7")

    def exchanged(manifest: dict[str, Any], _: Any) -> None:
        manifest["layers"][0], manifest["layers"][1] = manifest["layers"][1], manifest["layers"][0]

    def moved(_: Any, config: dict[str, Any]) -> None:
        config["parts"][0]["runs"][1][0] += 1

    def another(_: Any, config: dict[str, Any]) -> None:
        config["content"]["images"][0]["digest"] = "a" * 64

    def missing(manifest: dict[str, Any], _: Any) -> None:
        manifest["layers"][0]["digest"] = "sha256:" + "b" * 64

    def too_many(manifest: dict[str, Any], _: Any) -> None:
        manifest["layers"] *= 4

    def a_label(_: Any, config: dict[str, Any]) -> None:
        config["content"]["images"][0]["os"] = "\x1b[2J"

    def wrong_size(manifest: dict[str, Any], _: Any) -> None:
        manifest["layers"][0]["size"] += 1

    expected = {
        newer: "does not know",
        exchanged: "digest",
        moved: "digest",
        another: "digest",
        missing: "",
        too_many: "number of chunks",
        a_label: "not valid",
        wrong_size: "",
    }
    for change, says in expected.items():
        name = f"docker://{registry.host}/hostile@{rewrite(registry, digest, change)}"
        with pytest.raises(BoughError, match=says or None) as caught:
            await theirs.pull(name)
        assert isinstance(caught.value, BadImage | NotFound | DownloadFailed), (change, caught.value)
        assert theirs.store.entries() == [], change
        assert list(theirs.home.incoming.iterdir()) == []


async def test_a_blob_without_an_end(
    registry: Registry, ours: House, theirs: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull ends when more has come than the manifest says."""
    make_image(ours, "web", seed=6)
    name = f"docker://{registry.host}/endless:1"
    await ours.push("web", name)

    async def copy(self: Skopeo, layout: Path, received: Any, **_: Any) -> None:
        (layout / "oci-put-blob1").write_bytes(bytes(64 << 20))
        received()

    monkeypatch.setattr(Skopeo, "copy", copy)
    with pytest.raises(BadImage, match="sent more than"):
        await theirs.pull(name)
    theirs.check_clean()

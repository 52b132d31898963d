"""Container images from a real registry, from layouts and from archives: as disks in the store.

The boot kit is a blank one: no test here boots a disk.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bough.errors import BadImage, BoughError, DownloadFailed, HostLacks, NotFound
from bough.images.oci.boot_kit.store import BootKit
from bough.images.oci.disk import ROOT_PARTITION
from bough.images.oci.pull import ContainerPull
from bough.images.store import ImageManifest, ImageStore
from bough.paths import Home
from bough.progress import Progress, Report, ignore_progress
from bough.spec.container_name import parse_container_name
from bough.units import MIB
from tests.container_layers import digest, directory, file, pack, whiteout
from tests.container_registry import AUTH, OCI, Images, Registry, has_registry, serve_broken, serve_registry
from tests.leftovers import processes_of

pytestmark = pytest.mark.skipif(
    not has_registry() or shutil.which("mmdebstrap") is None,
    reason="docker-registry, skopeo or mmdebstrap is not installed",
)

BASE = pack([directory("bin"), file("bin/app", b"#!/bin/sh\n", mode=0o755), file("old", b"1")])
TOP = pack([file("etc/motd", b"hello\n", uid=7, gid=8), whiteout("old")])


class BlankKits:
    """The boot kit of the tests: 20 MiB without a loader."""

    def __init__(self, home: Home) -> None:
        self._path = home.root / "kit.img"
        with self._path.open("wb") as stream:
            stream.write(b"\xeb\x63" + bytes(508) + b"\x55\xaa")
            stream.truncate(20 * MIB)

    async def provide(self, arch: str, report: Report) -> BootKit:
        return BootKit(arch, "ab" * 32, self._path, {"linux-image": "1"})


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    # Not below pytest's own directory, which subordinate ids cannot enter.
    place = Path(tempfile.mkdtemp(prefix="bough-pull-", dir="/var/tmp"))
    place.chmod(0o711)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def registry(place: Path) -> Iterator[Registry]:
    with serve_registry(place / "registry") as registry:
        yield registry


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    root = Path(tempfile.mkdtemp(prefix="home-", dir=place))
    root.chmod(0o711)
    home = Home.at(root / "bough")
    # The user's own configuration of skopeo has no part in the tests.
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(root))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    yield home
    assert not list(home.incoming.iterdir()), "half-made files are left"
    assert not processes_of(home)
    shutil.rmtree(root)


class Puller:
    """A store with the use case."""

    def __init__(self, home: Home) -> None:
        home.create()
        self.home = home
        self.store = ImageStore(home)
        self.kits = BlankKits(home)
        self.pulls = ContainerPull(self.store, self.kits)

    async def __call__(
        self, name: str, *, arch: str = "x86_64", report: Report = ignore_progress
    ) -> ImageManifest:
        return await self.pulls.pull(parse_container_name(name), arch=arch, report=report)

    async def refuses(
        self, name: str, says: str, kind: type[BoughError], hint: str = "", **more: Any
    ) -> None:
        before = self.store.entries()
        with pytest.raises(kind) as told:
            await self(name, **more)
        assert type(told.value) is kind
        assert says in told.value.message
        assert hint in (told.value.hint or "")
        assert self.store.entries() == before

    def read(self, image: ImageManifest, path: str) -> bytes:
        """Return a file of the image's root."""
        return self._debugfs(image, f"cat {path}")

    def stat(self, image: ImageManifest, path: str) -> str:
        return self._debugfs(image, f"stat {path}").decode()

    def _debugfs(self, image: ImageManifest, words: str) -> bytes:
        disk = self.store.path(image.digest)
        table = json.loads(subprocess.check_output(["sfdisk", "--json", disk]))["partitiontable"]
        start = table["partitions"][ROOT_PARTITION - 1]["start"] * 512
        return subprocess.run(
            ["debugfs", "-R", words, f"{disk}?offset={start}"], check=True, capture_output=True
        ).stdout


@pytest.fixture
def pull(home: Home) -> Puller:
    return Puller(home)


def two_layers() -> Images:
    images = Images()
    config = {"Entrypoint": ["/bin/app"], "Cmd": ["serve"], "Env": ["A=b"], "User": "7:8"}
    images.image([BASE, TOP], config, name="1", created="2024-05-06T07:08:09Z")
    return images


async def test_an_image_from_a_registry(pull: Puller, registry: Registry) -> None:
    images, steps = two_layers(), []

    def report(step: Progress) -> None:
        steps.append(step.step)

    registry.push(images, "team/app")
    name = f"docker://{registry.host}/team/app:1"
    image = await pull(name, report=report)
    assert pull.read(image, "/bin/app") == b"#!/bin/sh\n"
    assert pull.read(image, "/etc/motd") == b"hello\n"
    assert pull.read(image, "/old") == b""
    assert "User:     7   Group:     8" in pull.stat(image, "/etc/motd")
    container = image.container
    assert container is not None
    assert (container.reference, container.digest) == (name, images.named["1"]["digest"])
    assert (container.entrypoint, container.cmd, container.env) == (("/bin/app",), ("serve",), {"A": "b"})
    assert (image.label, image.arch, image.agent, image.version) == (name, "x86_64", "disk", "1")
    assert pull.store.resolve(name).digest == image.digest
    assert pull.store.resolve(f"oci:{registry.host}/team/app:1").digest == image.digest
    assert pull.store.resolve(image.digest[:12]).digest == image.digest
    assert not list(pull.home.downloads.iterdir())
    assert any(step.startswith(f"pulling {name}") for step in steps)
    assert "unpacking layer 2 of 2" in steps
    # The same content under another name is the same image, and needs no second unpacking.
    registry.push(images, "other")
    steps.clear()
    assert (await pull(f"docker://{registry.host}/other:1", report=report)).digest == image.digest
    assert not any(step.startswith("unpacking") for step in steps)


async def test_a_tag_that_moves(pull: Puller, registry: Registry) -> None:
    registry.push(two_layers(), "moving")
    name = f"docker://{registry.host}/moving:1"
    first = await pull(name)
    newer = Images()
    newer.image([BASE], name="1")
    registry.push(newer, "moving")
    assert pull.pulls.is_current(parse_container_name(name), first), "only a pull asks the registry"
    second = await pull(name)
    assert second.digest != first.digest
    assert pull.store.resolve(name).digest == second.digest
    # The digest still leads to the first one.
    assert first.container is not None
    pinned = await pull(f"docker://{registry.host}/moving@{first.container.digest}")
    assert pinned.digest == first.digest


async def test_an_index_has_an_image_for_each_architecture(pull: Puller, registry: Registry) -> None:
    images = Images()
    arm = images.image([pack([file("arm")])], architecture="arm64")
    pc = images.image([pack([file("pc")])])
    images.index({"arm64": arm, "amd64": pc, "s390x": pc}, name="all")
    images.index({"arm64": arm}, name="arm")
    images.image([pack([file("arm")])], architecture="arm64", name="alone")
    registry.push(images, "multi")
    name = f"docker://{registry.host}/multi"
    for arch, blob in (("x86_64", pc), ("aarch64", arm)):
        image = await pull(f"{name}:all", arch=arch)
        assert image.arch == arch
        assert image.container is not None
        assert image.container.digest == blob["digest"]
    assert pull.store.resolve(f"{name}:all", "aarch64").arch == "aarch64"
    await pull.refuses(
        f"{name}:all", "for riscv64", NotFound, "available: arm64, amd64, s390x", arch="riscv64"
    )
    await pull.refuses(f"{name}:arm", "for x86_64", NotFound, "available: arm64")
    await pull.refuses(f"{name}:alone", "for x86_64", NotFound, "use --arch aarch64")


async def test_dockers_format_keeps_its_healthcheck(pull: Puller, registry: Registry) -> None:
    images = Images()
    config = {"Cmd": ["x"], "Healthcheck": {"Test": ["CMD", "true"], "Interval": 2_000_000_000}}
    images.image([BASE], config, name="1", docker=True)
    registry.push(images, "docker")
    image = await pull(f"docker://{registry.host}/docker:1")
    assert image.container is not None
    assert image.container.digest == images.named["1"]["digest"]
    assert image.container.healthcheck == {"test": ["CMD", "true"], "interval": 2.0}


async def test_layouts_and_archives(pull: Puller, registry: Registry, tmp_path: Path) -> None:
    images = two_layers()
    images.image([BASE], name="2")
    layout = images.write_layout(tmp_path / "layout")
    for form in ("oci-archive", "docker-archive"):
        skopeo("copy", f"oci:{layout}:1", f"{form}:{tmp_path}/{form}.tar:example/app:1")
    image = await pull(f"oci:{layout}:1")
    assert image.container is not None
    assert image.container.digest == images.named["1"]["digest"]
    assert pull.read(image, "/etc/motd") == b"hello\n"
    assert (await pull(f"oci-archive:{tmp_path}/oci-archive.tar")).digest == image.digest
    docker = await pull(f"docker-archive:{tmp_path}/docker-archive.tar:example/app:1")
    assert docker.container is not None
    assert docker.container.entrypoint == ("/bin/app",)
    assert pull.read(docker, "/etc/motd") == b"hello\n"
    # A file that has changed is read again at the next use.
    name = parse_container_name(f"oci:{layout}:1")
    assert pull.pulls.is_current(name, image)
    assert pull.pulls.is_current(parse_container_name(f"oci-archive:{tmp_path}/oci-archive.tar"), image)
    os.utime(layout / "index.json", ns=(1, 1))
    assert not pull.pulls.is_current(name, image)
    assert (await pull(str(name))).digest == image.digest
    assert pull.pulls.is_current(name, image)
    await pull.refuses(f"oci:{layout}", "several images", NotFound, f"oci:{layout}:NAME")
    await pull.refuses(f"oci:{layout}:3", "no image called '3'", NotFound)
    await pull.refuses(f"oci:{tmp_path}/none", "No such file", NotFound)
    await pull.refuses(f"oci:{tmp_path}", "is not an OCI layout", BadImage)
    await pull.refuses(f"oci-archive:{layout}", "is not a file", BadImage, f"oci:{layout}")
    await pull.refuses(f"oci:{tmp_path}/oci-archive.tar", "is not a directory", BadImage, "oci-archive:")
    await pull.refuses(f"oci-archive:{tmp_path}/docker-archive.tar", "is not an archive", BadImage)
    await pull.refuses(f"docker-archive:{layout}/oci-layout", "is not an archive", BadImage)


def skopeo(*words: str) -> None:
    subprocess.run(["skopeo", *words], check=True, capture_output=True)


async def test_what_a_registry_does_not_have(pull: Puller, registry: Registry) -> None:
    registry.push(two_layers(), "here")
    host = registry.host
    await pull.refuses(f"docker://{host}/nothing", "has no image nothing:latest", NotFound, "list-tags")
    await pull.refuses(f"docker://{host}/here:2", "has no image here:2", NotFound, f"docker://{host}/here")
    missing = "sha256:" + "ab" * 32
    await pull.refuses(f"docker://{host}/here@{missing}", f"has no manifest {missing}", NotFound)
    await pull.refuses("docker://127.0.0.1:1/x", "cannot be reached", DownloadFailed, "network")
    await pull.refuses("docker://nosuch.invalid/x", "", DownloadFailed)


async def test_content_that_is_not_as_its_digest_says(pull: Puller, registry: Registry) -> None:
    images = two_layers()
    registry.push(images, "damaged")
    name, manifest = (
        f"docker://{registry.host}/damaged",
        json.loads(images.blobs[images.named["1"]["digest"]]),
    )
    by_digest = f"{name}@{images.named['1']['digest']}"
    for damaged, says in (
        (manifest["layers"][1]["digest"], "damaged or cut off"),
        (manifest["config"]["digest"], "the configuration of"),
        (images.named["1"]["digest"], "has the digest"),
    ):
        path = registry.blob(damaged)
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        await pull.refuses(by_digest, says, BadImage)
        path.write_bytes(content)
        assert not list(pull.home.downloads.glob("*"))
    layer = registry.blob(manifest["layers"][1]["digest"])
    content = layer.read_bytes()
    layer.write_bytes(content[:20])
    await pull.refuses(f"{name}:1", "damaged or cut off", BadImage, "push the image")
    layer.unlink()
    await pull.refuses(f"{name}:1", "a part is missing", BadImage)
    layer.write_bytes(content)
    await pull(f"{name}:1")


def large_layers() -> tuple[Images, list[str]]:
    """Return an image with two layers, and the digests of these."""
    images = Images()
    image = images.image([BASE, pack([file("big", os.urandom(300_000))])], name="1")
    return images, [layer["digest"] for layer in json.loads(images.blobs[image["digest"]])["layers"]]


async def test_a_broken_pull_resumes(pull: Puller, registry: Registry) -> None:
    images, (first, second) = large_layers()
    registry.push(images, "broken")
    with serve_broken(registry.host) as broken:
        name, held = f"docker://{broken.host}/broken:1", asyncio.Event()

        def report(step: Progress) -> None:
            if step.detail.startswith("1 of 2 layers"):
                held.set()

        broken.held = second
        task = asyncio.create_task(pull(name, report=report))
        await asyncio.wait_for(held.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        kept = [one.name for one in pull.home.downloads.glob("*/blobs/sha256/*")]
        assert kept == [first.partition(":")[2]]
        assert not list(pull.home.downloads.glob("*/oci-put-blob*"))
        assert not list(pull.home.incoming.iterdir())
        broken.held = ""
        broken.asked.clear()
        await pull(name)
        assert broken.asked.count(second) == 1
        assert first not in broken.asked, "the first layer is here"
    assert not list(pull.home.downloads.iterdir())


async def test_a_connection_that_breaks(pull: Puller, registry: Registry) -> None:
    images, (_, second) = large_layers()
    registry.push(images, "cut")
    with serve_broken(registry.host) as broken:
        broken.cut = second
        name = f"docker://{broken.host}/cut:1"
        await pull.refuses(name, "could not be pulled", DownloadFailed, "again to resume")
        assert broken.asked.count(second) > 3, "several attempts"
        broken.cut = ""
        await pull(name)


async def test_a_damaged_part_of_a_broken_pull_is_not_used(pull: Puller, registry: Registry) -> None:
    images = two_layers()
    registry.push(images, "resumed")
    layer = json.loads(images.blobs[images.named["1"]["digest"]])["layers"][0]
    digits = images.named["1"]["digest"].partition(":")[2]
    blob = pull.home.downloads / f"container-{digits}/blobs" / layer["digest"].replace(":", "/")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"\0" * layer["size"])  # as a power loss leaves it
    await pull.refuses(f"docker://{registry.host}/resumed:1", "layer 1", BadImage)
    await pull(f"docker://{registry.host}/resumed:1")


async def test_a_registry_that_asks_for_a_login(
    pull: Puller, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_registry(place / "private", with_login=True) as private:
        private.push(two_layers(), "app", headers={"Authorization": f"Basic {AUTH}"})
        name = f"docker://{private.host}/app:1"
        login = f"skopeo login {private.host}"
        await pull.refuses(name, "asks for a login", DownloadFailed, login)
        auth = pull.home.root / "auth.json"
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth))
        auth.write_text(json.dumps({"auths": {private.host: {"auth": "bWU6d3Jvbmc="}}}))
        await pull.refuses(name, "login", DownloadFailed, login)
        auth.write_text("{")
        await pull.refuses(name, "auth file, which is damaged", DownloadFailed, login)
        auth.write_text(json.dumps({"auths": {private.host: {"auth": AUTH}}}))
        await pull(name)


async def test_a_policy_that_asks_for_signatures(pull: Puller, registry: Registry, tmp_path: Path) -> None:
    registry.push(two_layers(), "unsigned")
    layout = two_layers().write_layout(tmp_path / "layout")
    policy = Path(os.environ["HOME"], ".config/containers/policy.json")
    policy.parent.mkdir(parents=True)
    signed = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/dev/null"}
    policy.write_text(json.dumps({"default": [signed]}))
    name = f"docker://{registry.host}/unsigned:1"
    await pull.refuses(name, "A signature was required", BadImage, "policy.json")
    await pull.refuses(f"oci:{layout}:1", "A signature was required", BadImage, "policy.json")
    policy.write_text(json.dumps({"default": [{"type": "reject"}]}))
    await pull.refuses(name, "rejected by policy", BadImage)
    policy.write_text("{")
    await pull.refuses(name, "policy", HostLacks)
    policy.unlink()
    await pull(name)


async def test_what_is_no_image(pull: Puller, registry: Registry) -> None:
    images = Images()
    blob = images.put(b"chart", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
    config = images.put(b"{}", "application/vnd.cncf.helm.config.v1+json")
    kind = f"{OCI}.manifest.v1+json"
    content = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [blob]}
    images.manifest(content, name="chart")
    images.image([BASE], {"User": 5, "Cmd": "x\0"}, name="hostile")
    images.image([BASE], {}, name="windows", os="windows")
    images.image([BASE], rootfs={"type": "layers", "diff_ids": []}, name="fewer")
    lying = {"type": "layers", "diff_ids": [digest(b"other")]}
    images.image([BASE], rootfs=lying, name="lying")
    images.image([pack([file("x")])[:700]], name="short")
    registry.push(images, "odd")
    name = f"docker://{registry.host}/odd"
    await pull.refuses(f"{name}:chart", "an artifact of the type 'application/vnd.cncf.helm", BadImage)
    await pull.refuses(f"{name}:hostile", "User: expected text, got 5", BadImage)
    await pull.refuses(f"{name}:windows", "for 'windows'", BadImage)
    await pull.refuses(f"{name}:fewer", "1 layers, its configuration 0", BadImage)
    await pull.refuses(f"{name}:lying", "layer 1 of 1", BadImage)
    await pull.refuses(f"{name}:short", "layer 1 of 1", BadImage)
    assert not list(pull.home.downloads.iterdir())


async def test_two_pulls_at_once_are_one(pull: Puller, registry: Registry) -> None:
    registry.push(two_layers(), "twice")
    waited = []

    def report(step: Progress) -> None:
        waited.append(step.step.startswith("waiting for another pull"))

    name = f"docker://{registry.host}/twice:1"
    first, second = await asyncio.gather(pull(name, report=report), pull(name, report=report))
    assert first.digest == second.digest
    assert any(waited)
    assert len(pull.store.entries()) == 1


async def test_a_registry_that_sends_nothing(pull: Puller) -> None:
    pull.pulls = ContainerPull(pull.store, pull.kits, stall_s=1.0)
    with silent_server() as host:
        await pull.refuses(f"docker://{host}/x", "nothing came for 1 s", DownloadFailed)


async def test_the_end_of_the_service_ends_a_pull(pull: Puller) -> None:
    """kill -9 leaves no skopeo; the next service removes the half-made files."""
    with silent_server() as host:
        code = (
            "import asyncio\nfrom tests.machines.test_container_pull import Puller\n"
            f"from bough.paths import Home\nasyncio.run(Puller(Home.at({str(pull.home.root)!r}))('docker://{host}/x'))"
        )
        root = Path(__file__).resolve().parents[2]
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=root)
        await _until(lambda: any("skopeo" in one for one in _commands(str(pull.home.root))))
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await _until(lambda: not _commands(str(pull.home.root)))
    for stray in pull.home.incoming.iterdir():
        stray.rmdir()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (processes of another service)
            await asyncio.sleep(0.05)


def _commands(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in text:
            found.append(text)
    return found


@contextmanager
def silent_server() -> Iterator[str]:
    """Run a registry that takes requests and never answers."""
    end = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            end.wait(60)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        end.set()
        server.shutdown()
        server.server_close()

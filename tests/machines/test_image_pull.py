"""Images by their name in a catalogue: a server and a key of the test, the real gpgv in the real jail."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bough.errors import BadImage, BoughError, Conflict, DownloadFailed, InvalidInput, NotFound
from bough.images.catalogue import Catalogues, parse_catalogue
from bough.images.confined import Confinement
from bough.images.pull import pull_image
from bough.images.store import ImageStore
from bough.machines.plan import host_arch
from bough.paths import Home
from bough.progress import ignore_progress
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from tests.images_samples import convert, make_disk
from tests.publisher import Signer, serve_directory

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="no gpg to make a key with")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="bough-pull-", dir="/var/tmp"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def signers(place: Path) -> Iterator[tuple[Signer, Signer]]:
    ours, other = Signer(place / "gpg"), Signer(place / "other")
    yield ours, other
    ours.end()
    other.end()


@pytest.fixture(scope="module")
def image(place: Path) -> bytes:
    return convert(make_disk(place / "disk.raw"), "qcow2", place / "disk.qcow2").read_bytes()


def render_catalogue(url: str, signer: Signer, serial: int = 99990101) -> bytes:
    armour = f"[keys.inside]\nfingerprints = ['{signer.fingerprint}']\narmour = '''\n{signer.armour}'''\n"
    away = f"[keys.away]\nfingerprints = ['{signer.fingerprint}']\naddress = '{url}/key.gpg'\n"
    files = {
        "detached": f"checksums = '{url}/SUMS'\nsignature = '{url}/SUMS.gpg'\nkey = 'away'",
        "clear": f"checksums = '{url}/CHECKSUM'\nsignature = 'inside'\nkey = 'inside'",
        "plain": f"checksums = '{url}/SUMS'",
    }
    images = [
        f"[[images]]\nnames = ['test:{name}']\ntitle = 'A test'\nos = 'test'\nversion = '1'\n"
        f"[[images.files]]\narch = '{host_arch()}'\naddress = '{url}/disk.qcow2'\n{rest}\n"
        for name, rest in files.items()
    ]
    return "\n".join([f"format = 1\nserial = {serial}", armour, away, *images]).encode()


class Place:
    """A publisher's directory, its catalogue, and a home that pulls from it."""

    def __init__(self, home: Home, confinement: Confinement, site: Path, url: str, signer: Signer) -> None:
        self.store, self.confinement, self.site = ImageStore(home), confinement, site
        self.catalogue = parse_catalogue(render_catalogue(url, signer), "test")

    async def __call__(self, name: str, **more: Any) -> Any:
        pulled = (self.store, self.catalogue, name, host_arch(), self.confinement, ignore_progress)
        return await pull_image(*pulled, **more)

    async def refuses(self, name: str, says: str, kind: type[BoughError] = BadImage) -> None:
        with pytest.raises(kind) as caught:
            await self(name)
        assert says in str(caught.value), caught.value
        assert self.store.entries() == []
        assert list(self.store.home.incoming.iterdir()) == []


@pytest.fixture
async def pull(place: Path, signers: tuple[Signer, Signer], image: bytes, tmp_path: Path) -> Any:
    signer = signers[0]
    sums = f"{'0' * 64}  other.qcow2\n{hashlib.sha256(image).hexdigest()} *disk.qcow2\n".encode()
    checksum = f"# a comment\nSHA512 (disk.qcow2) = {hashlib.sha512(image).hexdigest()}\n".encode()
    for name, content in (
        ("disk.qcow2", image),
        ("SUMS", sums),
        ("SUMS.gpg", signer.sign(sums)),
        ("CHECKSUM", signer.clear_sign(checksum)),
        ("key.gpg", signer.armour.encode()),
    ):
        (tmp_path / name).write_bytes(content)
    root = Path(tempfile.mkdtemp(dir=place))
    root.chmod(0o711)
    home = Home.at(root)
    home.create()
    confinement = Confinement(await probe_jail(find_qemu(host_arch()), home))
    with serve_directory(tmp_path) as url:
        yield Place(home, confinement, tmp_path, url, signer)


async def test_every_kind_of_list(pull: Place) -> None:
    first = await pull("test:detached")
    assert first.label == "test:detached"
    assert first.cloud_init
    assert (await pull("test:clear", label="mine")).digest == first.digest
    assert (await pull("test:plain")).digest == first.digest
    (pull.site / "disk.qcow2").unlink()
    assert (await pull("test:detached")).digest == first.digest, "it is here: nothing is fetched"
    with pytest.raises(NotFound, match="test:nothing"):
        await pull("test:nothing")


async def test_what_is_not_as_its_publisher_made_it(pull: Place, signers: tuple[Signer, Signer]) -> None:
    site, other = pull.site, signers[1]
    sums = (site / "SUMS").read_bytes()
    (site / "SUMS").write_bytes(sums.replace(b"0" * 64, b"1" * 64))
    await pull.refuses("test:detached", "does not match the list")
    (site / "SUMS").write_bytes(sums)
    (site / "SUMS.gpg").write_bytes(other.sign(sums))
    await pull.refuses("test:detached", "not the publisher's")
    (site / "key.gpg").write_text(other.armour)
    await pull.refuses("test:detached", f"signed by {other.fingerprint}")
    (site / "key.gpg").write_text("<html>")
    await pull.refuses("test:detached", "OpenPGP key")
    (site / "SUMS.gpg").unlink()
    await pull.refuses("test:detached", "404", DownloadFailed)
    text = (site / "CHECKSUM").read_bytes()
    (site / "CHECKSUM").write_bytes(b"SHA256 (disk.qcow2) = " + b"0" * 64 + b"\n" + text)
    image = (site / "disk.qcow2").read_bytes()
    (site / "disk.qcow2").write_bytes(image[:-1] + b"x")
    await pull.refuses("test:plain", "not the requested file")
    await pull.refuses("test:clear", "not the requested file")
    (site / "disk.qcow2").write_bytes(image)
    assert await pull("test:clear"), "what stands outside of what is signed does not count"


async def test_a_list_without_the_file(pull: Place) -> None:
    (pull.site / "SUMS").write_text(f"{'0' * 64}  a\n{'1' * 64}  b\n")
    await pull.refuses("test:plain", "has no entry for disk.qcow2")


async def test_a_newer_catalogue_is_taken_whole_or_not(pull: Place, signers: tuple[Signer, Signer]) -> None:
    catalogues = Catalogues(pull.store.home)
    ours = catalogues.current()
    newer = render_catalogue("http://127.0.0.1:1", signers[0])
    for wrong in (b"", b"<html>", newer[:-40], newer.replace(b"key = 'away'", b"key = 'gone'")):
        with pytest.raises(InvalidInput, match="not a valid catalogue"):
            catalogues.replace(wrong, "http://x/c")
    assert catalogues.current() == ours
    assert catalogues.replace(newer, "http://x/c").knows("test:plain")
    assert (catalogues.current().serial, catalogues.source) == (99990101, "http://x/c")
    with pytest.raises(Conflict, match="older"):
        catalogues.replace(render_catalogue("http://127.0.0.1:1", signers[0], serial=5), "http://x/c")
    catalogues.replace(render_catalogue("http://127.0.0.1:1", signers[0], serial=5), "http://x/c", force=True)
    assert catalogues.current().serial == 5, "one that is forced is not used"
    pull.store.home.catalogue.write_text("{")
    assert catalogues.current() == ours, "a damaged one keeps nobody from using ours"
    catalogues.reset()

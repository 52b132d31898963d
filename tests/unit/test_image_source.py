"""When the name of a container image leads to a pull, and when to the image in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from bough.errors import InvalidInput
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.image_source import ImageSource
from bough.images.catalogue import Catalogues
from bough.images.oci.pull import ContainerPull
from bough.images.store import ImageManifest, ImageStore
from bough.machines.plan import host_arch
from bough.paths import Home
from bough.progress import Report, ignore_progress
from bough.spec.container_name import ContainerName

NGINX = "docker://docker.io/library/nginx:latest"


class Pulls:
    """Keeps an image for each pull."""

    def __init__(self, store: ImageStore, half_made: HalfMade) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.current = True
        self._store = store
        self._half_made = half_made

    def is_current(self, name: ContainerName, image: ImageManifest) -> bool:
        return self.current

    async def pull(
        self, name: ContainerName, *, arch: str, label: str | None, report: Report
    ) -> ImageManifest:
        assert self._half_made.is_busy
        self.asked.append((str(name), arch, label))
        digest = f"{len(self.asked):064x}"
        made = self._store.home.incoming / digest
        made.mkdir()
        (made / "disk.raw").write_bytes(b"")
        fields: dict[str, Any] = {"os": "linux", "version": "", "firmware": ("bios",), "recipe": ""}
        fields |= {"size_bytes": 0, "created": "2026", "label": label or str(name)}
        image = ImageManifest(digest=digest, arch=arch, **fields)
        self._store.add(made, image, label or str(name))
        return image


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path)
    home.create()
    return home


@pytest.fixture
def house(home: Home) -> tuple[ImageSource, Pulls]:
    store, half_made = ImageStore(home), HalfMade()
    pulls = Pulls(store, half_made)
    containers = cast("ContainerPull", pulls)
    return ImageSource(home, store, Catalogues(home), half_made, containers), pulls


async def test_only_the_first_use_pulls(house: tuple[ImageSource, Pulls]) -> None:
    source, pulls = house
    first = await source.find("oci:nginx", None, ignore_progress)
    for name in ("docker://nginx", NGINX, "oci:docker.io/nginx:latest"):
        assert (await source.find(name, None, ignore_progress)).digest == first.digest
    assert pulls.asked == [(NGINX, host_arch(), None)]


async def test_a_pull_always_asks(house: tuple[ImageSource, Pulls]) -> None:
    source, pulls = house
    await source.find("oci:nginx", None, ignore_progress)
    second = await source.pull("oci:nginx", arch=None, report=ignore_progress)
    assert len(pulls.asked) == 2
    assert (await source.find("oci:nginx", None, ignore_progress)).digest == second.digest
    await source.pull("oci:nginx", arch=None, label="web", report=ignore_progress)
    assert pulls.asked[-1] == (NGINX, host_arch(), "web")
    assert (await source.find("web", None, ignore_progress)).label == "web"


async def test_a_changed_file_is_read_again(house: tuple[ImageSource, Pulls]) -> None:
    source, pulls = house
    for current, count in ((True, 1), (True, 1), (False, 2)):
        pulls.current = current
        await source.find("oci-archive:/srv/a.tar", None, ignore_progress)
        assert len(pulls.asked) == count


@pytest.mark.parametrize("arch", ["aarch64", "riscv64"])
async def test_the_architecture(house: tuple[ImageSource, Pulls], arch: str) -> None:
    source, pulls = house
    await source.find("oci:nginx", None, ignore_progress)
    assert (await source.find("oci:nginx", arch, ignore_progress)).arch == arch
    assert (await source.find(f"oci:nginx@{arch}", None, ignore_progress)).arch == arch
    assert (await source.find("oci:nginx", None, ignore_progress)).arch == host_arch()
    await source.pull(f"oci:nginx@{arch}", arch=None, report=ignore_progress)
    assert [one[1] for one in pulls.asked] == [host_arch(), arch, arch]


async def test_a_wrong_name_is_told(house: tuple[ImageSource, Pulls]) -> None:
    source, pulls = house
    for work in (
        source.find("oci:Nginx", None, ignore_progress),
        source.pull("oci:./x", arch=None, report=print),
    ):
        with pytest.raises(InvalidInput, match="not the name of a container image"):
            await work
    assert not pulls.asked

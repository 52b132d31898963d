"""The names of compared systems, and what a user hears about systems that differ in kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bough.errors import Conflict, InvalidInput, NotFound
from bough.hypervisor.differences import Differences, Subject, View, complete
from bough.hypervisor.live_values import LiveValues
from bough.images.store import ImageManifest, ImageStore
from bough.paths import Home
from bough.progress import ignore_progress


def manifest(label: str, digest: str, arch: str = "x86_64") -> ImageManifest:
    return ImageManifest(
        digest=digest * 64,
        os="debian",
        version="12",
        arch=arch,
        firmware=("bios",),
        size_bytes=1 << 20,
        created="2026-01-01T00:00:00.000+00:00",
        label=label,
        recipe="",
    )


class Snapshots:
    """A store of snapshots without a snapshot, and the machines of a home without a machine."""

    def __init__(self) -> None:
        self.tree = self
        self.store = self

    def resolve(self, reference: str) -> Any:
        raise NotFound(f"no snapshot is called {reference!r}")

    find = resolve


@pytest.fixture
def differences(tmp_path: Path) -> Differences:
    home = Home.at(tmp_path / "home")
    home.create()
    store = ImageStore(home)
    for label, digest in (("debian:12", "a"), ("same", "b")):
        made = home.incoming / digest
        made.mkdir(parents=True)
        (made / "disk.raw").write_bytes(b"")
        store.add(made, manifest(label, digest), label)
    nothing: Any = Snapshots()
    return Differences(home, store, nothing, nothing, nothing)


@pytest.mark.parametrize(
    ("after", "before", "error", "says"),
    [
        ("nothing", None, NotFound, "no machine, snapshot or image is called 'nothing'"),
        ("machine:same", None, NotFound, "no machine is called 'same'"),
        ("same", None, InvalidInput, "image 'same' has no earlier state"),
        ("image:same", "same", InvalidInput, "cannot be compared with itself"),
        ("same", "image:gone", NotFound, "no image is called 'gone'"),
    ],
)
async def test_names(
    differences: Differences, after: str, before: str | None, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await differences.compare(after, before, ignore_progress)


async def test_a_machine_and_an_image_of_one_name(
    differences: Differences, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = manifest("same", "c")  # only its name matters here
    monkeypatch.setattr(Snapshots, "find", lambda _, reference: machine)
    with pytest.raises(Conflict, match="ambiguous") as raised:
        await differences.compare("same", None, ignore_progress)
    assert "machine:same" in (raised.value.hint or "")


def test_other_processors_and_one_running_guest() -> None:
    live = LiveValues("6.1.0", [{"protocol": "tcp", "address": "::", "port": 22}], {"vm.swappiness": "60"})
    one = View(Subject("image", manifest("one", "a")), [])
    other = View(Subject("image", manifest("other", "b", "aarch64")), [], live, ("no live values",))
    systems = {"before": {"title": "Debian"}, "after": {"title": "Debian"}}
    found = complete({"systems": systems, "units": [], "notes": ["last"]}, one, other)
    assert found["notes"] == [
        "after: no live values",
        "the processors differ (x86_64, aarch64): so do all programs",
        "last",
    ]
    assert found["ports"] == {"before": None, "after": live.ports}
    assert found["live_sysctls"] is None
    assert (found["before"]["title"], found["after"]["kernel"]) == ("Debian", "6.1.0")

"""The table of settings: complete, and strict about unknown settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bough.errors import BadBundle
from bough.forks.booted import booted_key, can_fork_booted, is_neutral, neutral
from bough.images.store import ImageManifest
from bough.machines.record import Hardware
from bough.snapshots.bundle_manifest import parse_manifest
from bough.spec import MachineSpec, parse_spec
from bough.spec.model import used_settings
from bough.spec.reference import render_example, render_settings
from bough.spec.settings import FORBIDDEN, SETTINGS, barring_process_image, entry_of

IMAGE = ImageManifest(
    digest="d", os="debian", version="12", arch="x86_64", firmware=("bios",), size_bytes=1, agent="installed",
    created="2026-01-01T00:00:00.000+00:00", label="debian:12", recipe="r",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


def test_every_setting_has_an_entry_and_no_other() -> None:
    assert set(SETTINGS) == set(MachineSpec.model_fields)


def test_the_pages_are_made_from_the_table() -> None:
    assert (ROOT / "docs/spec.md").read_text() == render_settings(), "run `make docs`"
    assert (ROOT / "examples/machine.toml").read_text() == render_example(), "run `make docs`"


def test_a_setting_without_an_entry_is_forbidden_everywhere() -> None:
    assert entry_of("gpu") is FORBIDDEN
    assert barring_process_image({"gpu", "vcpus"}) == ["gpu"]
    with pytest.raises(BadBundle, match="'gpu', which is unknown"):
        parse_manifest({"spec": {"image": "debian:12", "gpu": "all"}})


@pytest.mark.parametrize("setting", ["kernel", "initrd"])
def test_a_bundle_names_no_file_of_a_host(setting: str) -> None:
    with pytest.raises(BadBundle, match=f"{setting}.*file of the exporting host"):
        parse_manifest({"spec": {"image": "debian:12", setting: "/etc/shadow"}})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("kernel", "/boot/vmlinuz"),
        ("cdrom", "iso"),
        ("floppy", "dos"),
        ("user_data", "#cloud-config\n"),
        ("display", True),
        ("tpm", True),
        ("clock", "-7d"),
    ],
)
def test_what_always_boots(setting: str, value: Any) -> None:
    assert can_fork_booted(parse_spec({"image": "debian:12"}), IMAGE)
    assert not can_fork_booted(MachineSpec.model_validate({"image": "debian:12", setting: value}), IMAGE)


@pytest.mark.parametrize(
    "asked",
    [
        {"hostname": "web"},
        {"commands": ["true"]},
        {"ports": ["80"]},
        {"limits": {"cpu": 50}},
        {"restart": "on-failure"},
        {"environment": {"A": "1"}},
        {"nics": ["uplink", "back,ipv4=10.1.0.5"]},
    ],
)
def test_a_booted_machine_is_told_it_later(asked: dict[str, Any]) -> None:
    spec = parse_spec({"image": "debian:12", "vcpus": 3, **asked})
    assert not is_neutral(spec)
    assert is_neutral(neutral(spec, IMAGE))
    assert neutral(spec, IMAGE).vcpus == 3


def test_machines_that_differ_in_their_addresses_share_a_boot() -> None:
    hardware = Hardware.model_construct()
    keys = {
        booted_key(parse_spec({"image": "debian:12", "nics": cards}), IMAGE, hardware, "tcg", (7, 2, 0))
        for cards in (["back"], ["back,ipv4=10.1.0.5"], ["front,ipv4=10.2.0.5,mac=52:54:00:00:00:02"])
    }
    assert len(keys) == 1
    other = parse_spec({"image": "debian:12", "nics": ["back", "front"]})
    assert booted_key(other, IMAGE, hardware, "tcg", (7, 2, 0)) not in keys


def test_only_what_the_table_allows_gets_a_process_image() -> None:
    plain = parse_spec({"image": "debian:12", "display": False, "uplink": False, "vcpus": 4})
    assert barring_process_image(used_settings(plain)) == []
    shared = parse_spec({"image": "debian:12", "mounts": ["/tmp:/srv/x"], "display": True})
    assert barring_process_image(used_settings(shared)) == ["display", "mounts"]

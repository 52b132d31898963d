"""What a recipe may say, and the seed that cloud-init reads."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path

import pytest

from bough.errors import InvalidSpec
from bough.images.layers import layer_key, parse_packages
from bough.images.seed import render_agent_hook, render_meta_data, render_network, write_seed
from bough.spec import parse_recipe


def test_what_needs_a_machine() -> None:
    assert not parse_recipe({"base": "debian:12", "packages": ["nginx", "vim=2:9.0"]}).needs_machine
    assert parse_recipe({"base": "web", "packages": ["nginx"]}).needs_machine
    assert parse_recipe({"base": "debian:12", "commands": ["true"]}).needs_machine
    assert parse_recipe({"base": "debian:12", "size": "10GiB"}).needs_machine


@pytest.mark.parametrize(
    ("recipe", "places"),
    [
        ({}, ["base"]),
        ({"base": "debian:12", "comands": [], "packages": ["a b"]}, ["comands", "packages[0]"]),
        ({"base": "web", "kernel": "linux-image-amd64", "sise": 1}, ["kernel", "sise"]),
        ({"base": "debian:12", "agent": False, "commands": ["true"]}, ["agent"]),
        ({"base": "debian:12", "arch": "amr64"}, ["arch"]),
        ({"base": "debian:12", "packages": ["$(id)"]}, ["packages[0]"]),
        ({"base": "debian:12", "files": [{"path": "relative", "content": ""}]}, ["files[0].path"]),
        ({"base": "debian:12", "files": [{"path": "/etc/machine-id", "content": ""}]}, ["files[0].path"]),
    ],
)  # fmt: skip
def test_every_problem_at_once(recipe: dict[str, object], places: list[str]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_recipe(recipe)
    assert sorted(problem["place"] for problem in caught.value.problems) == places


def test_a_key_is_of_all_that_matters() -> None:
    recipe = parse_recipe({"base": "web", "commands": ["true"]}).model_dump(mode="json", exclude={"label"})
    assert layer_key("a", recipe) == layer_key("a", dict(reversed(recipe.items())))
    assert layer_key("b", recipe) != layer_key("a", recipe)
    assert layer_key("a", {**recipe, "commands": ["false"]}) != layer_key("a", recipe)


def test_packages_as_a_guest_tells_them() -> None:
    assert parse_packages("bash 5.2\n\nx\na b c\n" + "y " + "z" * 300) == {"bash": "5.2", "y": "z" * 100}


def test_meta_data_and_network() -> None:
    told = json.loads(render_meta_data("abc", "web", ["ssh-ed25519 AAAA me"]))
    assert told["instance-id"] == "bough-abc"
    assert told["public-keys"] == ["ssh-ed25519 AAAA me"]
    assert json.loads(render_network("52:54:00:1:2:3"))["ethernets"]["uplink"]["dhcp4"] is True
    assert json.loads(render_network(None))["ethernets"] == {}


def test_the_hook_holds_the_agent() -> None:
    hook = render_agent_hook()
    assert hook.startswith("#cloud-boothook\n#!/bin/sh\n")
    payload = hook.partition(".seed\n")[2].partition("\nEND\n")[0]
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(payload))) as archive:
        names = archive.getnames()
    assert "usr/lib/bough/bough/guest/agent.py" in names
    assert "usr/lib/systemd/system/bough-agent.service" in names
    assert render_agent_hook() == hook


def test_a_seed_is_an_iso_called_cidata(tmp_path: Path) -> None:
    import pycdlib

    texts = {
        "meta-data": "{}",
        "user-data": "#cloud-config\n",
        "vendor-data": "x" * 5000,
        "network-config": "{}",
    }
    write_seed(tmp_path / "seed.iso", texts)
    data = (tmp_path / "seed.iso").read_bytes()
    assert data[0x8028:0x8030].startswith(b"cidata ")
    iso = pycdlib.PyCdlib()
    iso.open(str(tmp_path / "seed.iso"))
    for name, text in texts.items():
        found = io.BytesIO()
        iso.get_file_from_iso_fp(found, rr_path=f"/{name}")
        assert found.getvalue() == text.encode()
    iso.close()

"""Validation of recipes, and the seed for cloud-init."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from bough.client.user_data import read_user_data
from bough.errors import InvalidInput, InvalidSpec
from bough.guest import agent_nic
from bough.images.layers import layer_key, parse_packages
from bough.images.seed import render_agent_hook, render_meta_data, render_network, write_seed
from bough.spec import parse_recipe, parse_spec


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
    assert json.loads(render_network(["52:54:00:1:2:3"]))["ethernets"]["uplink"]["dhcp4"] is True
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


@pytest.mark.parametrize(
    "text",
    [
        "#cloud-config\n{}\n",
        "#!/bin/sh\ntrue\n",
        "## template: jinja\n#cloud-config\n{}\n",
        "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x--\n",
        "#cloud-config\n" + "# filler\n" * 60_000,
    ],
)
def test_user_data_in_any_form(text: str, tmp_path: Path) -> None:
    variants = [text.encode(), text.encode("utf-8-sig"), text.encode("utf-16"), gzip.compress(text.encode())]
    for data in variants:
        (tmp_path / "user-data").write_bytes(data)
        read = read_user_data(tmp_path / "user-data")
        assert parse_spec({"image": "cloud", "user_data": read}).user_data == text
    assert parse_spec({"image": "cloud", "user_data": "\ufeff" + text}).user_data == text


def test_user_data_that_cloud_init_would_not_read(tmp_path: Path) -> None:
    for text in ("packages: [nginx]\n", "# cloud-config\n", "{}"):
        with pytest.raises(InvalidSpec, match="cloud-init ignores user-data"):
            parse_spec({"image": "cloud", "user_data": text})
    for data in (b"\xff\xfa\x00", gzip.compress(b"#cloud-config\n" * 99)[:-20]):
        (tmp_path / "user-data").write_bytes(data)
        with pytest.raises(InvalidInput, match="user-data"):
            read_user_data(tmp_path / "user-data")


def test_configurations_follow_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "52:54:00:ab:cd:ef", "52:54:00:12:34:fe"
    monkeypatch.setattr(agent_nic, "_DIRECTORIES", (str(tmp_path), str(tmp_path / "absent")))
    (tmp_path / "50-cloud-init.yaml").write_text(f"macaddress: {old}\n")
    (tmp_path / "ifcfg-eth0").write_text(f"HWADDR={old.upper()}\n")
    (tmp_path / "other").write_text("52:54:00:00:00:01\n")
    (tmp_path / "large").write_text(old * 10_000)
    (tmp_path / "50-cloud-init.yaml").chmod(0o600)
    changed = agent_nic.follow([(old, new)])
    assert [Path(path).name for path in changed] == ["50-cloud-init.yaml", "ifcfg-eth0"]
    assert (tmp_path / "50-cloud-init.yaml").read_text() == f"macaddress: {new}\n"
    assert (tmp_path / "50-cloud-init.yaml").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ifcfg-eth0").read_text() == f"HWADDR={new.upper()}\n"

"""The configuration of apt, locks, and layouts of disks that a machine makes. Pure."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bough.errors import BuildFailed, InvalidInput, InvalidSpec
from bough.images.apt import (
    ADD_SOURCES,
    DEFAULT_MIRRORS,
    FILTER_PATH,
    Mirrors,
    find_mirrors,
    parse_mirrors,
    render_pins,
    render_source,
    source_files,
)
from bough.images.disk import DISK_BYTES, DiskIdentity
from bough.images.layers import NEEDS_APT, layer_container, layer_spec, packages_recipe
from bough.images.locks import check_lock, check_same
from bough.images.moves import check_room, render_move_script
from bough.images.recipes import SCRIPTS, recipe_for
from bough.images.store import ImageManifest
from bough.spec import SourceSpec, load_toml, parse_lock, parse_recipe, render_lock
from bough.spec.container import Container
from bough.units import GIB

KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEZ\n-----END PGP PUBLIC KEY BLOCK-----\n"
RECIPE = recipe_for("debian:12", "x86_64")


#: Lines of mmdebstrap; if the host's apt trusts other keys, a line has the path of the right keys.
CHOSEN = """deb http://a.example/debian bookworm main
deb [signed-by="/usr/share/keyrings/a.gpg"] http://a.example/debian bookworm-updates main
deb http://s.example/debian-security bookworm-security main
"""


def sources_of_build(mirrors: Mirrors) -> list[str]:
    told = [f"mirror={mirrors.main or ''}", f"security={mirrors.security or ''}"]
    awk = ["awk", "-v", told[0], "-v", told[1], "-f", str(SCRIPTS / "mirrors.awk")]
    done = subprocess.run(awk, input=CHOSEN, text=True, check=True, capture_output=True)
    return done.stdout.splitlines()


def test_a_mirror_is_of_the_suite_and_its_updates() -> None:
    chosen = CHOSEN.splitlines()
    assert sources_of_build(parse_mirrors(None, None)) == chosen
    mirrored = sources_of_build(parse_mirrors("http://m.example/debian/", None))
    assert mirrored == [line.replace("a.example", "m.example") for line in chosen]
    security = sources_of_build(parse_mirrors(None, "http://m.example/security"))
    assert security == [*chosen[:2], "deb http://m.example/security bookworm-security main"]
    assert sources_of_build(parse_mirrors(None, "none")) == chosen[:2]


def test_bad_mirrors() -> None:
    for wrong in ("none", "m.example", "http://m.example/ [trusted=yes]", "http://m\ndeb x"):
        with pytest.raises(InvalidInput, match="--mirror"):
            parse_mirrors(wrong, None)


def test_a_source_and_its_key() -> None:
    source = SourceSpec(name="vendor", uri="https://example.org/apt", suites=("stable",), key=KEY)
    inside = render_source(source, key_inside=True)
    assert "Signed-By:\n -----BEGIN" in inside
    assert "\n .\n" in inside, "deb822 has no empty lines"
    files = source_files([source])
    assert files["/etc/apt/keyrings/vendor.asc"] == KEY
    assert "Signed-By: /etc/apt/keyrings/vendor.asc\n" in files["/etc/apt/sources.list.d/vendor.sources"]
    flat = SourceSpec(name="flat", uri="https://example.org/apt", suites=("./",))
    assert "Components" not in render_source(flat, key_inside=True)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"sources": [{"name": "a", "uri": "file:///etc", "suites": ["x"]}]}, "sources[0].uri"),
        ({"sources": [{"name": "a", "uri": "http://x/y", "suites": []}]}, "sources[0].suites"),
        ({"sources": [{"name": "a", "uri": "http://x", "suites": ["x\nTrusted: yes"]}]}, "suite"),
        ({"sources": [{"name": "a", "uri": "http://x", "suites": ["x"], "key": "a.asc"}]}, "armour"),
        ({"sources": [{"name": "a", "uri": "http://x", "suites": ["x"]}] * 2}, "sources[1].name"),
        ({"partitions": [{"mount": "/boot", "size": "1GiB"}]}, "partitions[0].mount"),
        ({"partitions": [{"mount": "/a b", "size": "1GiB"}]}, "partitions[0].mount"),
        ({"partitions": [{"mount": "/home", "size": "1GiB"}] * 2}, "partitions[1].mount"),
        ({"file_system": "zfs"}, "file_system"),
        ({"file_system": "xfs", "agent": False}, "agent"),
        ({"base": "other", "file_system": "xfs"}, "file_system"),
    ],
)
def test_bad_recipes(more: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_recipe({"base": "debian:12", **more})
    assert says in f"{caught.value} {caught.value.details}"


def test_a_layer_on_something_else_gets_the_sources_first() -> None:
    data = {
        "base": "web",
        "packages": ["xz-utils"],
        "sources": [{"name": "v", "uri": "http://e", "suites": ["s"]}],
    }
    lock = parse_lock({"lock": 1, "arch": "x86_64", "packages": {"xz-utils": "1"}})
    spec = layer_spec(parse_recipe(data), manifest(), lock)
    paths = [file["path"] for file in spec["files"]]
    asked = "/etc/apt/sources.list.d/v.sources.asked"
    assert paths == [asked, FILTER_PATH, "/etc/apt/preferences.d/00-bough-lock"]
    assert spec["commands"][:3] == [NEEDS_APT, ADD_SOURCES, "apt-get -q update"]
    assert "--install-recommends xz-utils" in spec["commands"][3]
    assert spec["commands"][-1].startswith("rm ")
    without = layer_spec(parse_recipe({**data, "recommends": False}), manifest(), None)
    assert "--no-install-recommends xz-utils" in without["commands"][3]


def test_a_layer_on_a_container_image_keeps_its_program() -> None:
    container = Container(
        reference="docker://x/y:z", digest="sha256:1", cmd=("serve",), env={"A": "1", "B": "2"}
    )
    base = manifest().model_copy(update={"container": container})
    recipe = parse_recipe({"base": "docker://x/y:z", "environment": {"B": "3", "C": "4"}})
    made = layer_container(recipe, base)
    assert made == container.model_copy(update={"env": {"A": "1", "B": "3", "C": "4"}})
    assert layer_container(parse_recipe({"base": "web", "environment": {"B": "3"}}), manifest()) is None


def test_packages_of_a_recipe_come_with_what_they_recommend() -> None:
    asked = {"base": "debian:12", "packages": ["docker.io", "curl", "sudo=1.9"]}
    recipe = packages_recipe(parse_recipe(asked), "x", "x86_64")
    assert recipe.recommending == ("docker.io",)
    assert "docker.io" not in recipe.plain_packages
    assert {"docker.io", "curl", "sudo=1.9"} <= set(recipe.all_packages)
    without = packages_recipe(parse_recipe({**asked, "recommends": False}), "x", "x86_64")
    assert without.recommending == ()
    assert "docker.io" in without.plain_packages


@pytest.mark.parametrize(
    ("suites", "components", "left"),
    [
        (["bookworm"], ["main"], []),
        (["bookworm"], ["main", "contrib"], [("bookworm", "contrib")]),
        (["bookworm", "bookworm-backports"], ["main"], [("bookworm-backports", "main")]),
        (["trixie"], ["main"], [("trixie", "main")]),
    ],
)
def test_a_suite_that_the_base_has_is_not_configured_twice(
    suites: list[str], components: list[str], left: list[tuple[str, str]], tmp_path: Path
) -> None:
    known = tmp_path / "known"
    known.write_text("deb http://deb.example/debian/ bookworm main\n")
    asked = {"name": "more", "uri": "https://deb.example/debian", "suites": suites, "components": components}
    assert _filtered(known, SourceSpec.model_validate(asked), tmp_path) == left
    # The base has no entry for source packages yet.
    both = SourceSpec.model_validate({**asked, "types": ["deb", "deb-src"]})
    whole = [(suite, " ".join(components)) for suite in suites]
    assert sorted(_filtered(known, both, tmp_path)) == sorted([*left, *whole])


def _filtered(known: Path, source: SourceSpec, place: Path) -> list[tuple[str, str]]:
    """Return suites and components."""
    (place / "asked").write_text(render_source(source, key_inside=False))
    awk = ["awk", "-f", str(SCRIPTS / "new_sources.awk"), str(known), str(place / "asked")]
    text = subprocess.run(awk, text=True, check=True, capture_output=True).stdout
    stanzas = [dict(line.split(": ", 1) for line in part.splitlines()) for part in text.split("\n\n") if part]
    return [(stanza["Suites"], stanza["Components"]) for stanza in stanzas]


def test_a_file_system_needs_its_tools() -> None:
    recipe = parse_recipe({"base": "debian:12", "file_system": "btrfs"})
    assert recipe.needs_machine
    packages = packages_recipe(recipe, "x", "x86_64")
    assert "btrfs-progs" in packages.all_packages
    assert packages.digest() != replace(RECIPE, label="x").digest()


def test_pins_leave_no_choice() -> None:
    pins = render_pins({"nginx": "1.22.1-9"})
    assert "Package: nginx\nPin: version 1.22.1-9\nPin-Priority: 1001\n" in pins
    assert pins.endswith("Package: *\nPin: release *\nPin-Priority: -1\n")


def manifest(**more: Any) -> ImageManifest:
    base = {"digest": "d" * 64, "os": "debian", "version": "12", "arch": "x86_64", "firmware": ("bios",)}
    rest = {"size_bytes": DISK_BYTES, "created": "", "label": "x", "recipe": RECIPE.digest()}
    return ImageManifest.model_validate({**base, **rest, **more})


def test_a_lock_is_written_and_read() -> None:
    packages = dict.fromkeys(RECIPE.all_packages, "1:2.3+b1~x-4")
    data = {"lock": 1, "arch": "x86_64", "recipe": RECIPE.digest(), "digest": "d" * 64, "packages": packages}
    data["boot_loader"] = dict.fromkeys(RECIPE.grub_packages, "2.06")
    text = render_lock(data)
    assert "http" not in text
    lock = parse_lock(load_toml(text))
    assert render_lock(lock.model_dump(mode="json")) == text
    check_lock(lock, RECIPE)
    check_same(manifest(packages=packages, boot_loader=lock.boot_loader), RECIPE, lock)
    with pytest.raises(BuildFailed, match="another digest"):
        check_same(manifest(packages=packages, digest="e" * 64), RECIPE, lock)
    with pytest.raises(BuildFailed, match="other packages than the lock: sudo"):
        check_same(manifest(packages={**packages, "sudo": "2"}), RECIPE, lock)
    with pytest.raises(InvalidInput, match="no version of nginx"):
        check_lock(lock, replace(RECIPE, packages=("nginx",)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lock": 2, "packages": {}},
        {"packages": {"a\nPackage": "1"}},
        {"packages": {"sudo": "1\nPin-Priority: 1"}},
        {"packages": {"sudo": 1}},
        {"packages": {}, "digest": "x"},
        {"packages": {}, "mirror": "http://x"},
    ],
)
def test_bad_locks(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="lock"):
        parse_lock({"lock": 1, "arch": "x86_64", **wrong})


@pytest.mark.skipif(shutil.which("sfdisk", path="/usr/sbin:/sbin") is None, reason="no sfdisk on this host")
def test_the_layout_that_a_machine_makes(tmp_path: Path) -> None:
    home = SimpleNamespace(mount="/home", size=1 * GIB, file_system="xfs")
    swap = SimpleNamespace(mount="swap", size=GIB // 2, file_system="ext4")
    identity = DiskIdentity.derive("recipe")
    script = render_move_script(identity, "x86_64", DISK_BYTES, "btrfs", [home, swap])
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    table = script.partition("<<'END'\n")[2].partition("END\n")[0]
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as stream:
        stream.truncate(DISK_BYTES)
    sfdisk = ["/usr/sbin/sfdisk", "-q", "--no-reread", "--no-tell-kernel", str(disk)]
    subprocess.run(sfdisk, input=table, text=True, check=True)
    listed = subprocess.run(["/usr/sbin/sfdisk", "-l", disk], text=True, check=True, capture_output=True)
    ends = {
        line.split()[0][-1]: int(line.split()[2]) for line in listed.stdout.splitlines() if ".raw" in line[1:]
    }
    assert ends["3"] == max(ends.values()), "the root is the last, to grow"
    assert f"mkbtrfs -q -f -U {identity.root_filesystem}" in script
    with pytest.raises(InvalidInput, match="for the root"):
        check_room(DISK_BYTES, [SimpleNamespace(mount="/home", size=7 * GIB, file_system="ext4")])


def test_mirrors_of_the_home_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BOUGH_MIRROR", "BOUGH_SECURITY_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    settings = tmp_path / "settings.toml"
    assert find_mirrors(settings) == DEFAULT_MIRRORS
    lines = ("process_images = false", 'mirror = "http://m.example/debian/"', 'security_mirror = "none"')
    settings.write_text("\n".join(lines))
    assert find_mirrors(settings) == Mirrors("http://m.example/debian", "none")
    monkeypatch.setenv("BOUGH_MIRROR", "http://other.example/debian")
    assert find_mirrors(settings) == Mirrors("http://other.example/debian", "none")
    monkeypatch.delenv("BOUGH_MIRROR")
    for wrong, says in (("mirror = 7", "mirror: expected"), ("mirror = ", "cannot be read")):
        settings.write_text(wrong)
        with pytest.raises(InvalidInput, match=says):
            find_mirrors(settings)

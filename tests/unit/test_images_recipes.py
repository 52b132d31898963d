"""Images that can be built, and the errors for others."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bough.errors import NotFound
from bough.images.emulation import render_program, render_rule
from bough.images.platforms import PLATFORMS
from bough.images.recipes import LABELS, SCRIPTS, recipe_for


@pytest.mark.parametrize("label", LABELS)
def test_every_label_has_a_recipe(label: str) -> None:
    recipe = recipe_for(label, "x86_64")
    assert recipe.label == label
    assert len(recipe.digest()) == 64
    assert recipe.digest() == recipe_for(label, "x86_64").digest()


def test_recipes_differ() -> None:
    assert len({recipe_for(label, "x86_64").digest() for label in LABELS}) == len(LABELS)


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(NotFound) as caught:
        recipe_for("debain:12", "x86_64")
    assert caught.value.hint == "did you mean 'debian:12'?"


def test_an_unknown_architecture_is_told() -> None:
    with pytest.raises(NotFound, match="m68k"):
        recipe_for("debian:12", "m68k")


def test_no_mirror_is_named() -> None:
    for path in SCRIPTS.rglob("*"):
        if path.is_file():
            assert "http" not in path.read_text(), path


def test_each_architecture_has_what_boots_it() -> None:
    found = {arch: recipe_for("debian:13", arch) for arch in ("x86_64", "aarch64", "riscv64")}
    found["i386"] = recipe_for("debian:12", "i386")
    assert len({recipe.digest() for recipe in found.values()}) == 4
    for arch, recipe in found.items():
        assert recipe.arch == arch
        assert any("grub-" in package for package in recipe.grub_packages)
        assert PLATFORMS[arch].firmware


def test_a_release_without_the_architecture_is_told() -> None:
    with pytest.raises(NotFound) as caught:
        recipe_for("debian:12", "riscv64")
    assert caught.value.hint == "debian:12 can be built for x86_64, aarch64, i386"


def test_a_rule_for_binfmt_is_one_line_within_its_bounds() -> None:
    """The kernel accepts at most 1920 bytes (fs/binfmt_misc.c)."""
    for platform in PLATFORMS.values():
        rule = render_rule(platform, "/usr/bin/qemu-static")
        assert len(rule) < 1920
        assert rule.count(":") == 7
        assert "\n" not in rule


@pytest.mark.parametrize("arch", sorted(PLATFORMS))
def test_the_smallest_program_runs(arch: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(render_program(PLATFORMS[arch]))
    program.chmod(0o755)
    emulator = shutil.which(f"qemu-{arch}-static")
    if emulator is None and arch != os.uname().machine:
        pytest.skip(f"needs qemu-{arch}-static")
    words = [str(program)] if arch == os.uname().machine else [str(emulator), str(program)]
    assert subprocess.run(words, check=False, timeout=20).returncode == 0

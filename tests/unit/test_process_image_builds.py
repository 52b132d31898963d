"""Process images on builds of QEMU: the off switch, tested builds, self-tests, and doctor's line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from bough.errors import HostLacks, MachineFailed
from bough.forks.process_image import availability as availability_module
from bough.forks.process_image.availability import Availability
from bough.forks.process_image.builds import Build, SelfTest, SelfTests, read_build
from bough.forks.process_image.switch import VARIABLE, why_off
from bough.paths import Home
from bough.qemu.binary import QemuBinary

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="process images exist on x86_64 alone")


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path)


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a program that calls itself QEMU 9.9."""
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho 'QEMU emulator version 9.9.0 (Best 9.9)'; echo Copyright\n")
    program.chmod(0o755)
    found = QemuBinary(str(program), (9, 9, 0), "x86_64")
    monkeypatch.setattr(availability_module, "find_qemu", lambda arch: found)
    return str(program)


async def passes() -> None:
    pass


async def fails() -> None:
    raise MachineFailed("its guest did not answer")


@pytest.mark.parametrize(
    ("word", "is_on"),
    [("off", False), ("0", False), ("nonsense", False), ("", True), ("on", True), ("ON", True)],
)
def test_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, is_on: bool) -> None:
    monkeypatch.setenv(VARIABLE, word)
    assert (why_off(tmp_path / "settings.toml") is None) is is_on


@pytest.mark.parametrize(
    ("text", "is_on"),
    [
        ("process_images = false", False),
        ("process_images = true", True),
        ('process_images = "yes"', False),
        ("process_images =", False),
        ("", True),
    ],
)
def test_the_setting(tmp_path: Path, text: str, is_on: bool) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(text)
    assert (why_off(settings) is None) is is_on


def test_the_variable_overrides_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("process_images = false")
    monkeypatch.setenv(VARIABLE, "on")
    assert why_off(settings) is None


def test_a_build_is_known_by_its_content(qemu: str) -> None:
    before = read_build(qemu)
    assert before.version == "9.9.0 (Best 9.9)"
    Path(qemu).write_text(Path(qemu).read_text() + "# another build\n")
    after = read_build(qemu)
    assert after.version == before.version
    assert after.digest != before.digest
    with pytest.raises(HostLacks, match="cannot be read"):
        read_build("/nowhere/qemu")


def test_results_of_self_tests(tmp_path: Path) -> None:
    file, build, other = tmp_path / "self-tests.json", Build("1", "aa"), Build("1", "bb")
    tests = SelfTests(file)
    assert tests.find(build) is None
    tests.add(SelfTest(build, "it crashed", time.time()))
    tests.add(SelfTest(other, None, 0.0))
    found = SelfTests(file).find(build)
    assert found is not None
    assert found.failure == "it crashed"
    assert tests.find(other) is not None, "a passed test is valid for ever"
    tests.add(SelfTest(build, "it crashed", time.time() - 90_000))
    assert tests.find(build) is None, "a failed test is repeated after a day"
    assert len(json.loads(file.read_text())) == 2
    file.write_text("{")
    assert tests.find(other) is None


async def test_a_tested_build_needs_no_self_test(home: Home, qemu: str) -> None:
    availability = Availability(home, tested=frozenset({"9.9.0 (Best 9.9)"}))
    await availability.require(qemu)
    assert not await availability.needs_self_test(qemu)
    assert availability.check().ok
    assert availability.check().detail == "tested with QEMU 9.9.0 (Best 9.9)"


async def test_another_build_is_tried_out_first(home: Home, qemu: str) -> None:
    availability = Availability(home)
    await availability.require(qemu)
    assert await availability.needs_self_test(qemu)
    assert "a self-test precedes the first use" in availability.check().detail
    await availability.self_test(qemu, passes)
    later = Availability(home)
    assert not await later.needs_self_test(qemu)
    assert later.check().detail == "the self-test passed on QEMU 9.9.0 (Best 9.9)"


async def test_a_failed_self_test_switches_them_off(home: Home, qemu: str) -> None:
    availability = Availability(home)
    with pytest.raises(HostLacks, match="self-test of this QEMU failed: its guest did not answer"):
        await availability.self_test(qemu, fails)
    with pytest.raises(HostLacks, match="did not answer"):
        await Availability(home).require(qemu)
    check = availability.check()
    assert not check.ok
    assert not check.required
    assert "their self-test failed on QEMU 9.9.0 (Best 9.9): its guest did not answer" in check.detail


async def test_switched_off(home: Home, qemu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    availability = Availability(home)
    with pytest.raises(HostLacks, match=f"{VARIABLE} is 'off'"):
        await availability.require(qemu)
    assert availability.check().detail == f"off, since {VARIABLE} is 'off'; each fork starts a QEMU"

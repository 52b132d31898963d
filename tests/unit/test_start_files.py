"""The files that make an init start the agent from the agent disk."""

from __future__ import annotations

import subprocess
from configparser import RawConfigParser

import pytest

from bough.guest.install import STARTER_PATH as STARTER
from bough.guest.start_files import start_files

DEBIAN = b"""\
# /etc/inittab
id:2:initdefault:
si::sysinit:/etc/init.d/rcS
~~:S:wait:/sbin/sulogin
l2:2:wait:/etc/init.d/rc 2
1:2345:respawn:/sbin/getty 38400 tty1
"""


def content_of(init: str, inittab: bytes | None = None) -> dict[str, bytes]:
    start = start_files(init, inittab)
    assert start is not None
    return {file.path: file.content for file in start.files}


def test_systemd() -> None:
    start = start_files("systemd")
    assert start is not None
    (unit,) = start.files
    parser = RawConfigParser(strict=False)
    parser.read_string(unit.content.decode())
    assert parser["Service"]["ExecStart"] == STARTER
    assert parser["Service"]["KillMode"] == "process"
    (link,) = start.links
    assert link.path.endswith("/sysinit.target.wants/bough-agent.service")
    assert link.target == unit.path


def test_openrc() -> None:
    start = start_files("openrc")
    assert start is not None
    (script,) = start.files
    assert script.mode == 0o755
    assert script.content.startswith(b"#!/sbin/openrc-run\n")
    assert [(link.path, link.target) for link in start.links] == [
        ("/etc/runlevels/boot/bough-agent", script.path)
    ]


@pytest.mark.parametrize("init", ["openrc", "runit"])
def test_scripts_are_valid(init: str) -> None:
    for content in content_of(init).values():
        subprocess.run(["sh", "-n"], input=content, check=True)


def test_sysvinit_starts_the_agent_before_the_first_runlevel() -> None:
    lines = content_of("sysvinit", DEBIAN)["/etc/inittab"].decode().splitlines()
    assert lines.index(f"bo:12345:once:{STARTER}") == lines.index("si::sysinit:/etc/init.d/rcS") + 1
    lines.remove(f"bo:12345:once:{STARTER}")
    assert lines == DEBIAN.decode().splitlines()


def test_busybox_keeps_the_lines_of_the_guest() -> None:
    own = b"::sysinit:/etc/init.d/rcS\n\n"
    assert content_of("busybox", own)["/etc/inittab"] == own.strip() + f"\n::once:{STARTER}\n".encode()
    made = content_of("busybox")["/etc/inittab"].decode()
    assert made.startswith("::sysinit:/etc/init.d/rcS\n::askfirst:-/bin/sh\n")
    assert made.endswith(f"::once:{STARTER}\n")


@pytest.mark.parametrize("init", ["sysvinit", "busybox"])
def test_a_second_installation_changes_nothing(init: str) -> None:
    once = content_of(init, DEBIAN)["/etc/inittab"]
    assert content_of(init, once)["/etc/inittab"] == once


def test_runit() -> None:
    start = start_files("runit")
    assert start is not None
    assert [(file.path, file.mode) for file in start.files] == [("/etc/sv/bough-agent/run", 0o755)]
    assert start.links[0].target == "/etc/sv/bough-agent"


@pytest.mark.parametrize("init", ["s6", "unknown", ""])
def test_an_unknown_init_has_no_files(init: str) -> None:
    assert start_files(init) is None


def test_sysvinit_needs_its_inittab() -> None:
    assert start_files("sysvinit") is None

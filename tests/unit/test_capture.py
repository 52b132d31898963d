"""The plan of a capture: addresses, what a host tells, what is copied, what rsync may ask for."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bough.errors import BadImage, InvalidInput
from bough.images.capture import source
from bough.images.capture.facts import HostFacts, parse_facts
from bough.images.capture.plan import make_plan
from bough.images.capture.source import check_words
from bough.machines.capture_machine import _relative
from bough.spec.ssh_address import SshAddress, parse_address
from bough.units import GIB

LOOK = Path(source.__file__).parent / "inside" / "look.sh"
TOLD = """\
uid\t0
machine\tx86_64
kernel\t6.1.0-18-amd64
hostname\tdb
cmdline\tBOOT_IMAGE=/vmlinuz root=/dev/mapper/vg-root ro quiet elevator=noop
os.ID\tdebian
container\tnone
program\trsync
program\tupdate-initramfs
mount\t0:22 / /proc proc proc
mount\t254:0 / / xfs /dev/mapper/vg-root
mount\t8:1 / /boot ext4 /dev/sda1
mount\t8:2 / /srv/a\\040b ext4 /dev/sda2
mount\t254:0 /srv/data /exported xfs /dev/mapper/vg-root
mount\t0:50 / /mnt/files nfs4 files:/export
mount\t0:51 / /run/user/0 tmpfs tmpfs
used\t4194304 /dev/mapper/vg-root /
used\t102400 /dev/sda1 /boot
used\t1024 /dev/sda2 /srv/a b
files\t90000 /
block\t/dev/mapper/vg-root lvm xfs /
block\t/dev/mapper/vg-root crypt
swap\t1048576 partition /dev/sda3
image\t/boot/vmlinuz-6.1.0-18-amd64
driver\tvirtio_blk module
driver\tvirtio_net module
done\tyes
"""


@pytest.fixture
def facts() -> HostFacts:
    return parse_facts(TOLD)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://db", SshAddress("db")),
        ("ssh://Root@DB.example.org:2222/", SshAddress("DB.example.org", "Root", 2222)),
        ("ssh://root@[fe80::1]:22", SshAddress("fe80::1", "root", 22)),
    ],
)
def test_an_address(text: str, address: SshAddress) -> None:
    assert parse_address(text) == address
    assert address.options[-2:] == ["--", address.host]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "db",
            "http://db",
            "ssh://",
            "ssh://db/etc",
            "ssh://root:secret@db",
            "ssh://db:port",
            "ssh://-oX=y",
        ),
        *("ssh://-l@db", "ssh://db;reboot", "ssh://a b", "ssh://[x", "ssh://db\n"),
    ],
)
def test_no_address(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_address(text)


def test_this_host_tells_about_itself() -> None:
    done = subprocess.run(["sh", "-s"], stdin=LOOK.open(), capture_output=True, check=True, text=True)
    facts = parse_facts(done.stdout)
    assert facts.machine
    assert any(mount.point == "/" for mount in facts.mounts)
    assert facts.used["/"] > 0


def test_a_plan(facts: HostFacts) -> None:
    plan = make_plan(facts, ["/var/cache/*"])
    assert [mount.point for mount in plan.copied] == ["/", "/boot", "/srv/a b"]
    assert plan.arch == "x86_64"
    assert plan.used_bytes == (4194304 + 102400 + 1024) * 1024
    assert plan.disk_bytes == 8 * GIB
    assert {"/exported/*", "/proc/*", "/var/cache/*"} <= set(plan.excluded)
    told = "\n".join(plan.notes)
    for word in ("/mnt/files (nfs4", "encrypted", "xfs there", "/boot, /srv/a b", "swap of 1 GiB", "RAID"):
        assert word in told


def test_all_problems_are_told_at_once(facts: HostFacts) -> None:
    poor = replace(facts, uid=1000, machine="sparc64", programs=set(), images=[], mounts=[])
    with pytest.raises(InvalidInput) as caught:
        make_plan(poor, ["a\nb"])
    for word in ("sparc64", "root", "rsync", "kernel", "mounts", "pattern"):
        assert word in caught.value.message


def test_a_container_is_no_host(facts: HostFacts) -> None:
    with pytest.raises(InvalidInput, match="container"):
        make_plan(replace(facts, container="lxc"))


def test_a_disk_that_is_too_small(facts: HostFacts) -> None:
    with pytest.raises(InvalidInput, match="too small"):
        make_plan(facts, disk_bytes=2 * GIB)


def test_subvolumes_are_file_systems_and_bind_mounts_are_not() -> None:
    told = TOLD.replace(
        "mount\t254:0 / / xfs /dev/mapper/vg-root\n",
        "mount\t0:30 /@ / btrfs /dev/sda4\nmount\t0:30 /@home /home btrfs /dev/sda4\n"
        "mount\t0:30 /@/var/www /srv/www btrfs /dev/sda4\n",
    ).replace("mount\t254:0 /srv/data /exported xfs /dev/mapper/vg-root\n", "")
    plan = make_plan(parse_facts(told))
    assert [mount.point for mount in plan.copied] == ["/", "/boot", "/home", "/srv/a b"]
    assert "/srv/www/*" in plan.excluded


@pytest.mark.parametrize("text", ["", "uid\t0\n", "Welcome!\n" * 50, TOLD.replace("done\tyes\n", "")])
def test_an_answer_without_its_end(text: str) -> None:
    with pytest.raises(BadImage):
        parse_facts(text)


def test_a_hostile_answer_is_bounded() -> None:
    facts = parse_facts("os.ID\t" + "x" * 1_000_000 + "\n" + "mount\t" * 1000 + "\n" + TOLD)
    assert len(facts.os["ID"]) <= 4096
    with pytest.raises(BadImage):
        parse_facts("x" * 10_000_000 + "\n" + TOLD)


WORDS = ["rsync", "--server", "--sender", "-xlogDtpAXHSe.iLsfxCIvu", "--numeric-ids", ".", "/srv/"]


def test_rsync_may_read_the_file_system() -> None:
    assert check_words(WORDS, "/srv/") == WORDS
    assert check_words([*WORDS[:4], "--bwlimit=100", *WORDS[4:]], "/srv/")


@pytest.mark.parametrize(
    "words",
    [
        ["sh", "-c", "reboot"],
        [*WORDS[:-1], "/etc/"],
        [*WORDS[:3], *WORDS[4:-1], "/other/", "/srv/"],
        ["rsync", "--server", *WORDS[3:]],
        [*WORDS[:4], "--remove-source-files", *WORDS[4:]],
        [*WORDS[:4], "--log-file=/etc/passwd", *WORDS[4:]],
        [*WORDS[:3], "-s", ".", "/srv/"],
        [*WORDS[:4], "-e", "sh", ".", "/srv/"],
        [],
    ],
)
def test_and_nothing_else(words: list[str]) -> None:
    with pytest.raises(InvalidInput):
        check_words(words, "/srv/")


@pytest.mark.parametrize(
    ("pattern", "point", "relative"),
    [
        ("*.iso", "/srv", "*.iso"),
        ("/srv/cache/*", "/srv", "/cache/*"),
        ("/srv/cache/*", "", "/srv/cache/*"),
        ("/home/*", "/srv", None),
        ("/srvx/*", "/srv", None),
    ],
)
def test_a_pattern_as_of_the_mount_point(pattern: str, point: str, relative: str | None) -> None:
    assert _relative(pattern, point) == relative

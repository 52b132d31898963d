"""Detection of vCPUs that hang on a stale translation, from QEMU's description of the vCPUs."""

from __future__ import annotations

import pytest

from bough.machines.vcpus import Vcpu, parse_vcpus
from bough.machines.workarounds.stuck_vcpus import FIXED, SWITCH, is_watched, place_of

SITE, HANDLER, AFTER = 0xFFFFFFFF87610B81, 0xFFFFFFFF87C00B80, 0xFFFFFFFF87C0107F


def at(address: int, *, takes_interrupts: bool = False) -> Vcpu:
    return Vcpu("", address, 0, False, takes_interrupts)


def test_what_qemu_says() -> None:
    told = (
        "\r\nCPU#0\r\nRAX=0000000000000000 RBX=ffffffff00000000\r\n"
        "RIP=ffffffff87610b81 RFL=00000293 [--S-A-C] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n"
        "CPU#1\r\nEIP=00401000 EFL=00000046 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=1\r\n"
    )
    first, second = parse_vcpus(told)
    assert (first.address, first.ring, first.is_halted, first.takes_interrupts) == (SITE, 0, False, True)
    assert (second.address, second.ring, second.is_halted, second.takes_interrupts) == (
        0x401000,
        3,
        True,
        False,
    )
    assert first.text == "RIP=ffffffff87610b81 RFL=00000293 [--S-A-C] CPL=0 II=0 A20=1 SMM=0 HLT=0"


@pytest.mark.parametrize(
    "told", ["", "RIP=", "RIP=zz RFL=00000293 CPL=0", "PC=ffff0000 PSTATE=600003c5", "\0" * 99]
)
def test_what_says_nothing(told: str) -> None:
    assert parse_vcpus(told) == []


def test_no_more_than_a_few() -> None:
    assert len(parse_vcpus("RIP=0000000000000000 RFL=00000002 \r\n" * 1000)) == 16


def test_who_is_caught() -> None:
    inside = [at(SITE, takes_interrupts=True), at(HANDLER), at(SITE, takes_interrupts=True), at(AFTER)] * 4
    assert place_of(inside) == SITE
    assert place_of([at(SITE), at(HANDLER), at(AFTER)] * 5 + [at(SITE)]) == SITE


@pytest.mark.parametrize(
    "samples",
    [
        [at(SITE, takes_interrupts=True)] * 16,
        [at(SITE, takes_interrupts=True)] * 15 + [at(AFTER, takes_interrupts=True)],
        [at(SITE + number) for number in range(16)],
        [at(SITE), at(SITE)] + [at(HANDLER + number) for number in range(14)],
    ],
    ids=["one long instruction", "which is interrupted", "busy with interrupts off", "with many turns"],
)
def test_who_is_not(samples: list[Vcpu]) -> None:
    assert place_of(samples) is None


@pytest.mark.parametrize(
    ("version", "switch", "watched"),
    [
        ((7, 2), None, True),
        ((8, 0), None, True),
        (FIXED, None, False),
        ((10, 0), "", False),
        ((10, 0), "on", True),
        ((7, 2), "off", False),
        ((7, 2), "perhaps", True),
        ((0, 0), None, True),
    ],
    ids=["7.2", "8.0", "8.1", "10.0", "forced on", "forced off", "unknown word", "unreadable version"],
)
def test_only_qemus_with_the_defect_are_watched(
    version: tuple[int, int], switch: str | None, watched: bool
) -> None:
    environment = {} if switch is None else {SWITCH: switch}
    assert is_watched(version, environment) is watched

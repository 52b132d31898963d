"""The condition of a guest that does not answer, from its console and its vCPUs."""

from __future__ import annotations

import pytest

from bough.machines.condition import Kind, judge_vcpus
from bough.machines.console_hints import ConsoleHints
from bough.machines.vcpus import parse_vcpus

#: QEMU's output for a Debian that halted, one that panicked, and one that waits for work.
HALTED = "RIP=ffffffffa743d023 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1"
TURNS = "RIP=ffffffffa7a5bedb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0"
WAITS = "RIP=ffffffffa743d023 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1"
COMPUTES = "RIP=00007ffff7ed6350 RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0"
PANIC = b"[   46.6] Kernel panic - not syncing: sysrq triggered crash\r\n"
HALT = b"[   71.157194] reboot: System halted\r\n"


@pytest.mark.parametrize(
    ("vcpus", "printed", "kind"),
    [
        ([HALTED, HALTED], HALT, Kind.HALTED),
        ([HALTED, HALTED], b"", Kind.HALTED),
        ([HALTED, WAITS], HALT, None),
        ([WAITS, WAITS], b"", None),
        ([TURNS, HALTED], PANIC, Kind.PANICKED),
        ([TURNS], PANIC, Kind.PANICKED),
        ([HALTED], PANIC, Kind.PANICKED),
        # A guest that prints such a line and keeps running.
        ([TURNS, WAITS], PANIC, None),
        ([COMPUTES, HALTED], PANIC, None),
        ([TURNS, HALTED], b"", None),
        # A processor with another form of QEMU's output.
        ([], PANIC, Kind.PANICKED),
        ([], HALT, Kind.HALTED),
        ([], b"", None),
    ],
)
def test_what_it_has_done(vcpus: list[str], printed: bytes, kind: Kind | None) -> None:
    words = ConsoleHints()
    words.read(printed)
    assert judge_vcpus(parse_vcpus("\n".join(vcpus)), words) is kind


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_last_words_in_pieces(size: int) -> None:
    words = ConsoleHints()
    told = b"x" * 3000 + PANIC + b"[   47.1] Rebooting in 10 seconds..\r\n" + HALT
    for begin in range(0, len(told), size):
        words.read(told[begin : begin + size])
    assert (words.panic, words.reboots_in_s, words.halted) == ("sysrq triggered crash", 10.0, True)
    assert words.printed_bytes == len(told)
    words.forget()
    assert not words.is_there


def test_hostile_last_words() -> None:
    words = ConsoleHints()
    words.read(b"Kernel panic - not syncing: \x1b[2J\xff\xfe" + b"A" * 100_000)
    assert words.panic is not None
    assert "\x1b" not in words.panic
    assert len(words.panic) <= 200
    words.read(b"\nRebooting in 999999 seconds")
    assert words.reboots_in_s == 3600.0
    words.read(b"Rebooting in 99999999999999999999 seconds")
    assert words.reboots_in_s == 3600.0

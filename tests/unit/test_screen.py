"""Keys of a US keyboard, and text from QEMU's dump of a PC's screen."""

from __future__ import annotations

import pytest

from bough.errors import InvalidInput
from bough.machines.screen import parse_keys, parse_text, spell


def test_what_is_typed() -> None:
    assert spell("aZ0 \n") == [["a"], ["shift", "z"], ["0"], ["spc"], ["ret"]]
    assert spell("|_{") == [["shift", "backslash"], ["shift", "minus"], ["shift", "bracket_left"]]
    printable = "".join(map(chr, range(32, 127)))
    assert len({tuple(keys) for keys in spell(printable)}) == 95


@pytest.mark.parametrize("text", ["ä", "\x1b", "€", "x" * 5000])
def test_what_cannot_be_typed(text: str) -> None:
    with pytest.raises(InvalidInput):
        spell(text)


def test_combinations() -> None:
    assert parse_keys("Ctrl-Alt-Delete") == ["ctrl", "alt", "delete"]
    assert parse_keys("F12") == ["f12"]
    assert parse_keys("-") == ["minus"]
    for wrong in ("", "ctrl-", "hyper-x", "f13", "-".join(["a"] * 17)):
        with pytest.raises(InvalidInput):
            parse_keys(wrong)


def test_text_of_a_screen() -> None:
    line = "Hello \u2500".ljust(80).encode("cp437") + b"line two".ljust(80)
    data = b"".join(bytes((character, 7)) for character in line).ljust(4000, b"\0")
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, 4000, 4)]
    dump = "".join(f"{0xB8000 + i * 16:016x}: 0x{word:08x}\r\n" for i, word in enumerate(words))
    assert parse_text(dump) == "Hello \u2500\nline two"
    assert parse_text("nonsense \x1b[2J") == ""

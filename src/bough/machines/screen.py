"""The screen and keyboard of a machine: pictures, text, keys, and VNC for viewers.

For guests without an agent, and for all software before an agent: firmware, boot loaders, installers.
Pictures and text come from QEMU, which is hostile. So bough bounds the data and only passes the data on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
from pathlib import Path
from typing import Any

from bough.errors import BoughError, InvalidInput, ProtocolError
from bough.qemu.qmp import Qmp
from bough.qemu.sockets import listen
from bough.tasks import Tasks

MOST_PICTURE_BYTES = 64 * 1024 * 1024
MOST_TEXT = 4096
MOST_KEYS = 16
#: Time for which a key is held, and the pause afterwards. A BIOS reads the keyboard some 20 times a second.
KEY_MS = 30
_FD_SET = 1
#: Sizes in pixels of a screen in VGA's text mode of 80x25 characters.
_TEXT_SIZES = {(720, 400), (640, 400)}
_WORD = re.compile(r"0x([0-9a-f]{8})\b")

_NAMED = {
    **{name: name for name in ("esc", "tab", "backspace", "insert", "delete", "home", "end", "up", "down")},
    **{name: name for name in ("left", "right", "ctrl", "alt", "shift", "menu", "print", "pause")},
    **{f"f{number}": f"f{number}" for number in range(1, 13)},
    **dict.fromkeys(("enter", "return", "ret"), "ret"),
    **dict.fromkeys(("space", "spc"), "spc"),
    **dict.fromkeys(("pageup", "pgup"), "pgup"),
    **dict.fromkeys(("pagedown", "pgdn"), "pgdn"),
    **dict.fromkeys(("super", "win", "meta"), "meta_l"),
    **dict.fromkeys(("del",), "delete"),
    **dict.fromkeys(("control",), "ctrl"),
    **dict.fromkeys(("escape",), "esc"),
}
#: Characters of a US keyboard without shift, and the same keys with shift.
_PLAIN = {
    " ": "spc", "\n": "ret", "\t": "tab", "-": "minus", "=": "equal", "[": "bracket_left",
    "]": "bracket_right", ";": "semicolon", "'": "apostrophe", "`": "grave_accent", "\\": "backslash",
    ",": "comma", ".": "dot", "/": "slash",
}  # fmt: skip
_SHIFTED = dict(zip('_+{}:"~|<>?!@#$%^&*()', "-=[];'`\\,./1234567890", strict=True))


def parse_keys(combination: str) -> list[str]:
    """Return QEMU's names (QKeyCode) of keys pressed together: "ctrl-alt-delete", "F12", "a".

    Raises:
        InvalidInput: unknown key, or too many keys.
    """
    parts = [combination] if combination in _PLAIN else re.split(r"[-+]", combination)
    found = []
    for part in parts:
        name = part.lower()
        key = _NAMED.get(name) or _PLAIN.get(name) or (name if re.fullmatch(r"[a-z0-9]", name) else None)
        if key is None:
            raise InvalidInput(
                f"{part[:20]!r} is not a key",
                hint="keys: enter, esc, f12, up, ctrl-alt-delete, a...; to type text: bough type NAME TEXT",
            )
        found.append(key)
    if len(found) > MOST_KEYS:
        raise InvalidInput(f"{len(found)} keys cannot be pressed together", hint=f"at most {MOST_KEYS}")
    return found


def spell(text: str) -> list[list[str]]:
    """Return the keys of a US keyboard for `text`.

    Raises:
        InvalidInput: the keyboard has no key for a character, or the text is too long.
    """
    if len(text) > MOST_TEXT:
        raise InvalidInput(f"{len(text)} characters are too many to type", hint=f"at most {MOST_TEXT}")
    return [_spell(character) for character in text]


def _spell(character: str) -> list[str]:
    if character in _PLAIN:
        return [_PLAIN[character]]
    if re.fullmatch(r"[a-z0-9]", character):
        return [character]
    if re.fullmatch(r"[A-Z]", character):
        return ["shift", character.lower()]
    if character in _SHIFTED:
        return ["shift", *_spell(_SHIFTED[character])]
    raise InvalidInput(f"a US keyboard has no key for {character!r}")


async def press(qmp: Qmp, combinations: list[list[str]]) -> None:
    """Press and release the combinations one after the other, slowly enough for a slow guest."""
    for keys in combinations:
        pressed = [{"type": "qcode", "data": key} for key in keys]
        hold: dict[str, Any] = {"hold-time": KEY_MS}
        await qmp.execute("send-key", keys=pressed, **hold)
        await asyncio.sleep(KEY_MS * 2 / 1000)


async def take_picture(qmp: Qmp) -> bytes:
    """Return the screen as PNG.

    QEMU writes the picture to a memory file of bough: the jail forbids new files.

    Raises:
        ProtocolError: QEMU sent no PNG, or one that is too large.
    """
    memory = os.memfd_create("screen", os.MFD_CLOEXEC)
    try:
        # QEMU accepts a descriptor only with the right access mode.
        writing = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            await qmp.add_fd(_FD_SET, writing)
        finally:
            os.close(writing)
        try:
            await qmp.execute("screendump", filename=f"/dev/fdset/{_FD_SET}", format="png")
        finally:
            with contextlib.suppress(BoughError):
                await qmp.remove_fd(_FD_SET)
        size = os.fstat(memory).st_size
        picture = os.pread(memory, min(size, MOST_PICTURE_BYTES), 0)
    finally:
        os.close(memory)
    if size > MOST_PICTURE_BYTES or _size_of(picture) is None:
        raise ProtocolError("QEMU sent no valid picture of the screen")
    return picture


def _size_of(picture: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG (from the IHDR chunk), or None."""
    if len(picture) < 24 or not picture.startswith(b"\x89PNG\r\n\x1a\n") or picture[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", picture, 16)
    return width, height


async def read_text(qmp: Qmp) -> str:
    """Return the text on a PC's screen in VGA's text mode: 25 lines of at most 80 characters.

    Raises:
        InvalidInput: the screen shows graphics.
    """
    size = _size_of(await take_picture(qmp))
    if size not in _TEXT_SIZES:
        raise InvalidInput(
            "the screen shows graphics, not text", hint="take a picture of it: bough screenshot NAME FILE.png"
        )
    # 80x25 characters with colours.
    return parse_text(await qmp.monitor("xp/1000xw 0xb8000"))


def parse_text(dump: str) -> str:
    """Return the lines in QEMU's dump of the 4000 bytes at 0xb8000."""
    words = [int(word, 16) for word in _WORD.findall(dump)[:1000]]
    data = struct.pack(f"<{len(words)}I", *words)[::2]
    text = data.replace(b"\0", b" ").decode("cp437")
    text = "".join(c if c.isprintable() else " " for c in text)
    return "\n".join(text[start : start + 80].rstrip() for start in range(0, len(text), 80)).rstrip("\n")


class VncDoor:
    """A VNC socket of bough. Each client's connection is passed to QEMU's VNC server. QEMU opens no socket
    for viewers.
    """

    def __init__(self, path: Path, qmp: Qmp) -> None:
        self._path = path
        self._qmp = qmp
        self._listener: socket.socket | None = None
        self._tasks = Tasks()
        self._count = 0

    def open(self) -> None:
        self._path.unlink(missing_ok=True)
        listener = listen(self._path, backlog=4)
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            viewer, _ = listener.accept()
            self._tasks.begin(self._hand_over(viewer), f"vnc {self._path}")

    async def _hand_over(self, viewer: socket.socket) -> None:
        self._count += 1
        name = f"vnc{self._count}"
        with viewer, contextlib.suppress(BoughError):
            await self._qmp.send_fd(name, viewer.fileno())
            await self._qmp.execute("add_client", protocol="vnc", fdname=name, skipauth=True)

    async def close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await self._tasks.end()

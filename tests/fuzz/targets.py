"""Targets: each takes bytes, processes them as bough processes a guest's, and checks the invariants.

`python -m tests.fuzz wire --seconds 60` searches bytes that reach new code (coverage-guided, by atheris) and
keeps them in cases/wire.txt. tests/unit/test_fuzz.py replays all kept cases, and generates more with
hypothesis.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from bough.bundle import read_manifest, read_pieces, write_bundle
from bough.cli.output import clean
from bough.client.copying.archive import Reader
from bough.client.copying.unpack import Unpacker, parse_name
from bough.errors import BadBundle, BoughError
from bough.guest import wire
from bough.machines.memory import MOST_VIDEO_BYTES
from bough.machines.video import split_devices
from bough.networks.frame_stream import MAX_FRAME_BYTES
from bough.networks.uplink_filter import Sieve, is_allowed
from bough.qemu.ram import PAGE_BYTES
from bough.snapshots.bundle_manifest import parse_manifest
from tests.fuzz.containers import fuzz_container
from tests.fuzz.images import fuzz_disk, fuzz_linux_disk, fuzz_lists, fuzz_ova

Frame = tuple[int, int, int, int, bytes]


class Script:
    """Bytes read as decisions; zeros after the last byte."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._data)

    def byte(self) -> int:
        return (self.take(1) or b"\0")[0]

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken


def _stream(script: Script) -> bytes:
    """Make a stream of frames, parts of frames and other bytes, as a guest could write to its port."""
    parts = [wire.SYNC + wire.pack(wire.READY, 0)] if script.byte() % 4 else []
    while not script.is_over:
        choice = script.byte() % 8
        if choice == 0:
            parts.append(script.take(script.byte()))
        elif choice == 1:
            parts.append(wire.SYNC)
        else:
            payload = script.take(script.byte()) * (300 if choice == 7 else 1)
            frame = wire.pack(
                1 + script.byte() % (wire.LAST_KIND + 2),
                script.byte() % 3,
                script.byte() % 5,
                payload[: wire.MAX_PAYLOAD],
                script.byte() % 4,
            )
            cut = script.byte() if choice == 2 else len(frame)
            parts.append(frame[:cut])
    return b"".join(parts)


def _frames(data: bytes, sizes: Iterator[int]) -> list[Frame]:
    reader, found = wire.FrameReader(wire.SYNC), []
    rest = memoryview(data)
    while rest:
        room = reader.room()
        assert 0 < len(room) <= wire._CAPACITY
        part = rest[: min(len(room), next(sizes))]
        room[: len(part)] = part
        reader.added(len(part))
        rest = rest[len(part) :]
        while (frame := reader.next()) is not None:
            kind, stream, nonce, session, payload = frame
            assert 0 < kind <= wire.LAST_KIND
            assert len(payload) <= wire.MAX_PAYLOAD
            found.append((kind, stream, nonce, session, bytes(payload)))
    return found


def fuzz_wire(data: bytes) -> None:
    """The same frames come out however the bytes are cut, and each was written whole."""
    stream = _stream(Script(data))
    sizes = iter(lambda: 1 + (data[len(stream) % len(data)] if data else 1), 0)
    whole = _frames(stream, iter(lambda: wire._CAPACITY, 0))
    assert _frames(stream, sizes) == whole
    for kind, channel, nonce, session, payload in whole:
        assert wire.pack(kind, nonce, session, payload, channel) in stream


def fuzz_values(data: bytes) -> None:
    """Bytes give a value or are refused; an accepted value survives a round trip."""
    try:
        value = wire.decode(data)
    except wire.WireError:
        return
    with contextlib.suppress(wire.WireError):  # numbers of 64 bits and a sign
        again = wire.decode(wire.encode(value))
        assert repr(again) == repr(value)


def fuzz_channel(data: bytes) -> None:
    """Every request to a guest ends, with a result or one of bough's errors."""
    asyncio.run(_attack(Script(data)))


async def _attack(script: Script) -> None:
    from tests.unit.test_agent_hostile import running

    async with running() as (channel, guest, session):
        call = asyncio.create_task(channel.call("load", {}, 5))
        ping = asyncio.create_task(channel.ping())
        await asyncio.sleep(0)
        with contextlib.suppress(OSError):
            while not script.is_over:
                choice, session_id = script.byte() % 8, script.byte() % 4
                payload = script.take(script.byte())
                if choice == 0:
                    await guest.send(payload)
                    continue
                if choice == 1:  # of an earlier session, or of none
                    await guest.send(
                        wire.pack(wire.DATA, guest.nonce ^ script.byte(), session_id, payload, 1)
                    )
                    continue
                if choice == 2:
                    payload = wire.encode({"code": script.byte(), "message": payload, "signal": "TERM"})
                await guest.tell(1 + script.byte() % wire.LAST_KIND, session_id, payload, script.byte() % 4)
                await asyncio.sleep(0)
        await channel.close()
        results = await asyncio.gather(call, ping, return_exceptions=True)
        assert all(isinstance(result, (dict, float, BoughError)) for result in results), results
        async for _ in session:
            pass
        ended = session.exit
        assert (ended.code, ended.signal, ended.error) != (None, None, None)


def fuzz_uplink(data: bytes) -> None:
    """No frame to the host itself passes, however the stream is cut."""
    script = Script(data)
    parts = []
    while not script.is_over:
        if script.byte() % 4 == 0:
            parts.append(script.take(script.byte()))
            continue
        kind = (b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00")[script.byte() % 4]
        frame = bytes(12) + kind + script.take(script.byte())
        parts.append(len(frame).to_bytes(4, "big") + frame)
    stream = b"".join(parts)
    cut = len(stream) // 2
    sieves = Sieve(), Sieve()
    try:
        whole = sieves[0].feed(stream)
        assert sieves[1].feed(stream[:cut]) + sieves[1].feed(stream[cut:]) == whole
    except ValueError:
        return
    at = 0
    while at < len(whole):
        length = int.from_bytes(whole[at : at + 4], "big")
        assert length <= MAX_FRAME_BYTES
        frame = whole[at + 4 : at + 4 + length]
        assert is_allowed(memoryview(frame))
        if frame[12:14] == b"\x08\x00":
            assert frame[30] not in (0, 127)
        at += 4 + length


def fuzz_terminal(data: bytes) -> None:
    """Cleaned console output does not control a terminal, and cleaning takes linear time."""
    for text in (data.decode(errors="replace"), data.decode("latin-1")):
        shown = clean(text)
        assert all(c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") for c in shown)
        assert len(shown) <= len(text)


def fuzz_archive(data: bytes) -> None:
    """No entry of an archive leaves the directory where it is unpacked, and no device is made."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as top:
        outside, inside = Path(top, "outside"), Path(top, "inside")
        outside.mkdir()
        inside.mkdir()
        (outside / "file").write_text("as it was")
        _unpack(_archive(Script(data), outside), inside)
        assert [path.name for path in outside.iterdir()] == ["file"]
        assert (outside / "file").read_text() == "as it was"
        assert sorted(path.name for path in Path(top).iterdir()) == ["inside", "outside"]
        for path in inside.rglob("*"):
            assert path.is_symlink() or path.is_file() or path.is_dir()
            assert path.is_symlink() or not path.stat().st_mode & 0o6000


def _archive(script: Script, outside: Path) -> bytes:
    """Make a tar stream with the fuzzer's names, links and kinds, some bytes altered."""
    names = [
        "a",
        "b",
        "a/b",
        "..",
        "../outside/file",
        "/etc/x",
        ".",
        "a/../../outside/x",
        "a//b",
        "b/file",
        "",
    ]
    names += [str(outside), str(outside / "file"), "../outside"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for _ in range(1 + script.byte() % 8):
            member = tarfile.TarInfo(names[script.byte() % len(names)])
            member.type = b"0125345671"[script.byte() % 10 : script.byte() % 10 + 1] or b"0"
            member.linkname = names[script.byte() % len(names)]
            member.mode = script.byte() * 16
            content = script.take(script.byte() % 64)
            member.size = len(content) if member.type == b"0" else 0
            archive.addfile(member, io.BytesIO(content) if member.size else None)
    raw = bytearray(buffer.getvalue())
    while not script.is_over:
        at = script.byte() * 256 + script.byte()
        raw[at % len(raw)] = script.byte()
    return bytes(raw)


def _unpack(data: bytes, inside: Path) -> None:
    reader = Reader(io.BytesIO(data).read)
    with contextlib.suppress(BoughError, OSError), Unpacker(os.fsencode(inside)) as unpacker:
        while (entry := reader.next()) is not None:
            unpacker.extract(reader, entry, parse_name(entry.path))
        unpacker.finish()


def fuzz_bundle(data: bytes) -> None:
    """Pieces lie in their parts, or are refused, and a manifest is possible for a machine."""
    script = Script(data)
    sizes = [1 << 16, 300]
    parts = [(0, [(0, b"a" * 500), (4096, bytes(range(256)) * 16)]), (1, [(7, b"small")])]
    whole = b"".join(write_bundle({"name": "web"}, parts))
    head = whole[: 16 + int.from_bytes(whole[12:16], "little") + 32]
    if script.byte() % 2:
        raw = bytearray(whole)
        while not script.is_over:
            raw[(script.byte() * 256 + script.byte()) % len(raw)] = script.byte()
    else:
        raw = bytearray(head + script.take(len(data)))
    with contextlib.suppress(BadBundle):
        source = io.BytesIO(bytes(raw))
        _, digest = read_manifest(source)
        for piece in read_pieces(source, digest, sizes):
            assert 0 <= piece.offset < piece.offset + len(piece.data) <= sizes[piece.part]
    with contextlib.suppress(BadBundle, ValueError, RecursionError):
        value = json.loads(data)
        if isinstance(value, dict):
            manifest = parse_manifest(value)
            assert not manifest.spec.autostart
            assert not manifest.spec.mounts
            assert manifest.spec.kernel is None
    _fuzz_screen(data)


def _fuzz_screen(data: bytes) -> None:
    """Fuzz the screen beside the devices: pages lie in a display adapter, or are refused."""
    for packed in (data, zlib.compress(data), zlib.compress(data + bytes(PAGE_BYTES))):
        end = struct.pack("<Q", len(packed)) + b"bough-video-1\0\0\0"
        with contextlib.suppress(ValueError):
            state, video = split_devices(b"state" + packed + end)
            assert state == b"state"
            assert video is not None
            assert sum(video.extents[-1]) <= MOST_VIDEO_BYTES
            assert sum(length for _, length in video.extents) == len(video.content)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": fuzz_wire,
    "values": fuzz_values,
    "channel": fuzz_channel,
    "uplink": fuzz_uplink,
    "terminal": fuzz_terminal,
    "archive": fuzz_archive,
    "disk": fuzz_disk,
    "ova": fuzz_ova,
    "linux_disk": fuzz_linux_disk,
    "lists": fuzz_lists,
    "bundle": fuzz_bundle,
    "container": fuzz_container,
}

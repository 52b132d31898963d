"""The memory of a guest's display adapter, saved with the device state.

QEMU's device state has the adapter's registers but not its memory: a migration transfers that memory like
RAM. A guest draws an object once and expects it to stay. Without the saved memory the guest would continue
with an empty screen. So bough appends the adapter's memory to QEMU's part of the file "devices":

    state of the devices, as QEMU wrote it
    zlib (RFC 1950) of:  number of parts (64 bits, little-endian, as all numbers here); offset and length
                         of each; their content, one after the other
    length of the zlib data (64 bits)
    "bough-video-1" and three zero bytes

The file of a bundle is hostile: the size is bounded before unpacking.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from dataclasses import dataclass

from bough.errors import MachineFailed
from bough.machines.memory import MOST_VIDEO_BYTES, find_video
from bough.qemu.qmp import Qmp
from bough.qemu.ram import PAGE_BYTES, Extent, GuestRam, size_of

_END = struct.Struct("<Q16s")
_MARK = b"bough-video-1\0\0\0"
_COUNT = struct.Struct("<Q")
_PAIR = struct.Struct("<QQ")
_MOST_BYTES = MOST_VIDEO_BYTES * 2


@dataclass(frozen=True)
class Video:
    """Pages of an adapter's memory: `content` holds the `extents`, one after the other."""

    extents: list[Extent]
    content: bytes

    @classmethod
    def read(cls, memory: GuestRam) -> Video:
        """Read what the guest has drawn. Raises MachineFailed, HostLacks: as GuestRam."""
        extents = memory.private_extents()
        return cls(extents, b"".join(memory.read(extents)))


def join_devices(state: bytes, video: Video | None) -> bytes:
    """Return the content of the file "devices"."""
    if video is None or not video.extents:
        return state
    head = _COUNT.pack(len(video.extents)) + b"".join(_PAIR.pack(*extent) for extent in video.extents)
    packed = zlib.compress(head + video.content, 1)
    return b"".join((state, packed, _END.pack(len(packed), _MARK)))


def split_devices(devices: bytes) -> tuple[bytes, Video | None]:
    """Return QEMU's part, and the adapter's memory, if any.

    Raises:
        ValueError: the data after QEMU's part is not from `join_devices`.
    """
    if len(devices) < _END.size:
        return devices, None
    size, mark = _END.unpack_from(devices, len(devices) - _END.size)
    if mark != _MARK:
        return devices, None
    begin = len(devices) - _END.size - size
    if begin < 0:
        raise ValueError("the screen's memory is longer than the whole file")
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(memoryview(devices)[begin : -_END.size], _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"the screen's memory cannot be unpacked: {error}") from error
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError("the screen's memory does not end where it should")
    return devices[:begin], _parse(data)


def _parse(data: bytes) -> Video:
    count = _COUNT.unpack_from(data)[0] if len(data) >= _COUNT.size else -1
    start = _COUNT.size + count * _PAIR.size
    if not 0 < count <= MOST_VIDEO_BYTES // PAGE_BYTES or start > len(data):
        raise ValueError("the screen's memory has no table")
    extents = list(_PAIR.iter_unpack(data[_COUNT.size : start]))
    end = 0
    for offset, length in extents:
        if offset < end or not length or offset % PAGE_BYTES or length % PAGE_BYTES:
            raise ValueError("the screen's memory has parts that are no whole pages")
        end = offset + length
    if end > MOST_VIDEO_BYTES or len(data) - start != size_of(extents):
        raise ValueError("the screen's memory is not as long as its table says")
    return Video(extents, data[start:])


async def put_back(qmp: Qmp, pid: int | None, video: Video) -> None:
    """Write the memory to an adapter after its state is loaded. The vCPUs must be paused.

    Raises:
        MachineFailed: the adapter has less memory, or is missing.
    """
    memory = await find_video(qmp, pid)
    if memory is None or sum(video.extents[-1]) > memory.size_bytes:
        raise MachineFailed("its display adapter has no room for the saved screen")
    await asyncio.to_thread(memory.write, video.extents, video.content)

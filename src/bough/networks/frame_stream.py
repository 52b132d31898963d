"""A stream of Ethernet frames, each after its length (4 bytes): QEMU's and passt's form.

The uplink's filter runs this module by path: standard library only.
"""

from __future__ import annotations

#: Somewhat more than 64 KiB, QEMU's largest frame. A greater length is an error.
MAX_FRAME_BYTES = 0x10000 + 256
LENGTH_BYTES = 4


class Frames:
    """Splitter of a stream into complete frames, each after its length."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Add `data`. Return the frames that are now complete.

        Raises:
            ValueError: the data is no stream of frames.
        """
        rest = self._rest
        rest += data
        end = 0
        while len(rest) - end >= LENGTH_BYTES:
            length = int.from_bytes(rest[end : end + LENGTH_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            if end + LENGTH_BYTES + length > len(rest):
                break
            end += LENGTH_BYTES + length
        with memoryview(rest) as view:
            whole = bytes(view[:end])
        del rest[:end]
        return whole


def split_frames(stream: bytes) -> list[bytes]:
    """Return the frames of complete frames with their lengths."""
    frames, at = [], 0
    while at < len(stream):
        start = at + LENGTH_BYTES
        at = start + int.from_bytes(stream[at:start], "big")
        frames.append(stream[start:at])
    return frames

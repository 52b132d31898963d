"""The guest that proves an accelerator: probe_guest.S, assembled (a test does it again and compares)."""

from __future__ import annotations

TOKEN = b"bough-probe-ok"
#: Of QEMU, when the guest came to its end: isa-debug-exit makes 0x10 into (0x10 << 1) | 1.
EXIT_STATUS = 33

_SIZE_BYTES = 0x10000
_RESET_VECTOR = 0xFFF0
_CODE = bytes.fromhex(
    "fa2e660f011620010f20c06683c8010f22c066ea1a00ffff080066b810008ed88ec08ed0fcbf0010000031c0b9001400"
    "00f3abc7050010000003200000c7050020000003300000c7050820000003400000c7051820000003500000c705003000"
    "0083000000c7050830000083002000c7050040000083002000c705f85f00008300e0ff0f20e083c8200f22e0b8001000"
    "000f22d8b9800000c00f320d000100000f300f20c00d000000800f22c0eab400ffff1800c704250000200001000662bb"
    "00000040813b01000662751db9002d3101ffc975fc488d3510000000ac84c07404e6e9ebf7b010e6f4f4ebfd626f7567"
    "682d70726f62652d6f6b0a008db400000000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf00"
    "1f000001ffff"
)
#: jmp, from the reset vector to the first byte.
_JUMP = bytes.fromhex("e90d00")


def render_firmware() -> bytes:
    """What a PC finds below 4 GiB when it is switched on: 64 KiB."""
    image = _CODE.ljust(_RESET_VECTOR, b"\0") + _JUMP
    return image.ljust(_SIZE_BYTES, b"\0")

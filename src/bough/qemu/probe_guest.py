"""The probe guests: assembled probe_guest*.S (a test assembles them again and compares)."""

from __future__ import annotations

from dataclasses import dataclass

TOKEN = b"bough-probe-ok"

_SIZE_BYTES = 0x10000
_RESET_VECTOR = 0xFFF0
_X86_64 = bytes.fromhex(
    "fa2e660f011620010f20c06683c8010f22c066ea1a00ffff080066b810008ed88ec08ed0fcbf0010000031c0b9001400"
    "00f3abc7050010000003200000c7050020000003300000c7050820000003400000c7051820000003500000c705003000"
    "0083000000c7050830000083002000c7050040000083002000c705f85f00008300e0ff0f20e083c8200f22e0b8001000"
    "000f22d8b9800000c00f320d000100000f300f20c00d000000800f22c0eab400ffff1800c704250000200001000662bb"
    "00000040813b010006627521b02ee6e9b9002d3101ffc975fc488d3510000000ac84c07404e6e9ebf7b010e6f4f4ebfd"
    "626f7567682d70726f62652d6f6b0a000000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf00"
    "1f000001ffff"
)
_I386 = bytes.fromhex(
    "fa2e660f0116d0000f20c06683c8010f22c066ea1a00ffff080066b810008ed88ec08ed0fcbf0010000031c0b9000400"
    "00f3abc7050010000083000000c7050014000083000000c705fc1f00008300c0ff0f20e083c8100f22e0b8001000000f"
    "22d80f20c00d000000800f22c0eb00c7050000200001000662bb00002040813b01000662751eb02ee6e9b9002d310149"
    "75fdbea700ffffac84c07404e6e9ebf7b010e6f4f4ebfd626f7567682d70726f62652d6f6b0a00900000000000000000"
    "ffff0000009bcf00ffff00000093cf001700b800ffff"
)
#: jmp, from the reset vector to the first byte.
_JUMP = bytes.fromhex("e90d00")
_AARCH64 = bytes.fromhex(
    "8002001800040071e1ffff540120a1d222608052223000b9230100106214403862000034220000b9fdffff1740010018"
    "020000d47f2003d5ffffff17626f7567682d70726f62652d6f6b0a001f2003d5002d310108000084"
)
_RISCV64 = bytes.fromhex(
    "f32240f163920204b73231019b8202d09382f2ffe39e02fe37030010970300009383430383c203006388020023005300"
    "938313006ff01fff37031000b75200009b82525523205300730050106ff0dfff626f7567682d70726f62652d6f6b0a00"
)


@dataclass(frozen=True)
class ProbeGuest:
    """Attributes:
    source: file name beside this module.
    firmware: the machine's start code.
    tells_start: the guest prints a byte after the setup, before the measured part.
    devices: QEMU options of the devices that report the token (chardev "token") and end the guest.
    exit_status: QEMU's exit status after the guest has completed.
    """

    source: str
    firmware: bytes
    devices: tuple[str, ...]
    exit_status: int
    tells_start: bool = False


def _render_pc(code: bytes) -> bytes:
    """Return the 64 KiB that a PC finds below 4 GiB at power-on."""
    image = code.ljust(_RESET_VECTOR, b"\0") + _JUMP
    return image.ljust(_SIZE_BYTES, b"\0")


_PC_DEVICES = (
    *("-device", "isa-debugcon,chardev=token"),
    *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
)
#: isa-debug-exit makes 0x10 into (0x10 << 1) | 1.
_PC_EXIT_STATUS = 33
_SERIAL = ("-serial", "chardev:token")

PROBE_GUESTS = {
    "x86_64": ProbeGuest(
        "probe_guest.S", _render_pc(_X86_64), _PC_DEVICES, _PC_EXIT_STATUS, tells_start=True
    ),
    "i386": ProbeGuest(
        "probe_guest_i386.S", _render_pc(_I386), _PC_DEVICES, _PC_EXIT_STATUS, tells_start=True
    ),
    "aarch64": ProbeGuest("probe_guest_aarch64.S", _AARCH64, _SERIAL, 0),
    "riscv64": ProbeGuest("probe_guest_riscv64.S", _RISCV64, _SERIAL, 0),
}

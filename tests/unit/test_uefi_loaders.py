"""Disks that start only by a boot entry: the content of their EFI system partition, and the entry itself."""

from __future__ import annotations

import io
import struct
import uuid
from pathlib import Path

import pytest

from bough.images.contents import Contents, Partition, _firmware_of, read_partitions
from bough.images.esp import choose_loader, parse_loaders
from bough.qemu.uefi_variables import BootFile, add_boot_entry

ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
GUID = bytes(range(16))


def gpt(*kinds: uuid.UUID, boot_code: bytes = b"") -> io.BytesIO:
    mbr = bytearray(512)
    mbr[: len(boot_code)] = boot_code
    mbr[446 + 4] = 0xEE
    mbr[510:] = b"\x55\xaa"
    header = bytearray(512)
    header[:8] = b"EFI PART"
    struct.pack_into("<QII", header, 72, 2, 128, 128)
    entries = b"".join(
        kind.bytes_le + GUID + struct.pack("<QQQ", 2048 * n, 2048 * n + 2047, 0) + bytes(72)
        for n, kind in enumerate(kinds, 1)
    )
    return io.BytesIO(bytes(mbr + header) + entries.ljust(128 * 128, b"\0"))


@pytest.mark.parametrize(
    ("kinds", "boot_code", "has_loader", "firmware"),
    [
        pytest.param((ESP, LINUX), b"", True, ["uefi"], id="installed by UEFI"),
        pytest.param((ESP, LINUX), b"\xeb\x63", True, ["uefi"], id="... with code in its first sector"),
        pytest.param((ESP, LINUX), b"", False, ["uefi"], id="... by a loader of an unknown name"),
        pytest.param((BIOS_BOOT, ESP, LINUX), b"\xeb\x63", True, ["bios", "uefi"], id="by both"),
        pytest.param((BIOS_BOOT, LINUX), b"\xeb\x63", False, ["bios"], id="by BIOS alone"),
        pytest.param((LINUX,), b"\xeb\x63", False, ["bios"], id="without a partition for it"),
        pytest.param((LINUX,), b"", False, [], id="data"),
    ],
)
def test_the_firmware_is_told_by_the_partitions(
    kinds: tuple[uuid.UUID, ...], boot_code: bytes, has_loader: bool, firmware: list[str]
) -> None:
    has_code, partitions = read_partitions(gpt(*kinds, boot_code=boot_code))
    assert _firmware_of(has_code, partitions, has_loader) == firmware
    assert [partition.number for partition in partitions] == list(range(1, len(kinds) + 1))
    assert all(partition.identity == GUID for partition in partitions)


def listing(*paths: str) -> bytes:
    return "".join(f"::/EFI/{path}\n" for path in paths).encode()


@pytest.mark.parametrize(
    ("files", "arch", "chosen"),
    [
        (["debian/grubx64.efi", "debian/shimx64.efi", "debian/mmx64.efi"],
         "x86_64", r"\EFI\debian\shimx64.efi"),
        (["debian/grubx64.efi", "debian/fbx64.efi", "debian/grub.cfg"], "x86_64", r"\EFI\debian\grubx64.efi"),
        (["debian/grubaa64.efi", "debian/grubx64.efi"], "aarch64", r"\EFI\debian\grubaa64.efi"),
        (["Microsoft/Boot/bootmgfw.efi", "Microsoft/Boot/memtest.efi"],
         "x86_64", r"\EFI\Microsoft\Boot\bootmgfw.efi"),
        (["Linux/arch-linux.efi"], "x86_64", r"\EFI\Linux\arch-linux.efi"),
        (["debian/grubx64.efi", "BOOT/BOOTX64.EFI"], "x86_64", None),
        (["debian/grubx64.efi", "BOOT/BOOTAA64.EFI"], "x86_64", r"\EFI\debian\grubx64.efi"),
        (["debian/grubx64.efi"], "aarch64", None),
        (["BOOT/grub.cfg", "BOOT/fbx64.efi"], "x86_64", None),
        ([], "x86_64", None),
    ],
)  # fmt: skip
def test_the_loader_that_an_entry_names(files: list[str], arch: str, chosen: str | None) -> None:
    found = choose_loader(parse_loaders(listing(*files)), arch)
    assert (found.path if found else None) == chosen


def test_hostile_names_are_none() -> None:
    hostile = (
        b"::/EFI/../../etc/x64.efi\n::/EFI/a\x1b[31m/grubx64.efi\n::/EFI/" + b"a" * 99 + b"/grubx64.efi\n"
    )
    assert parse_loaders(hostile) == []


def test_the_partition_of_a_stick_is_no_place_for_an_entry() -> None:
    files = parse_loaders(listing("debian/grubx64.efi"))
    assert Contents(loaders=((Partition(ESP, 0, 0), files),)).efi_loader("x86_64") is None
    esp = Partition(ESP, 2048, 4096, 1, GUID)
    loader = Contents(loaders=((esp, files),)).efi_loader("x86_64")
    assert loader is not None
    assert (loader.partition, loader.first_sector, loader.identity) == (1, 2048, GUID.hex())


TEMPLATES = [Path(f"/usr/share/OVMF/OVMF_VARS{kind}.fd") for kind in ("", "_4M", "_4M.ms")]


def read_variables(store: bytes) -> dict[str, bytes]:
    (place,) = struct.unpack_from("<H", store, 48)
    place += 28
    found = {}
    while struct.unpack_from("<H", store, place)[0] == 0x55AA:
        names, values = struct.unpack_from("<II", store, place + 36)
        name = store[place + 60 : place + 60 + names - 2].decode("utf-16-le")
        if store[place + 2] == 0x3F:  # not deleted
            assert name != "BootOrder" or name not in found, "one boot order alone counts"
            found[name] = store[place + 60 + names : place + 60 + names + values]
        place = (place + 60 + names + values + 3) & ~3
    return found


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_an_entry_in_the_variables_of_edk2(template: Path) -> None:
    if not template.exists():
        pytest.skip("no OVMF here")
    before = template.read_bytes()
    file = BootFile(r"\EFI\debian\grubx64.efi", 1, 2048, 4096, GUID)
    store = add_boot_entry(before, file, "disk")
    assert len(store) == len(before)
    found = read_variables(store)
    (number,) = struct.unpack("<H", found["BootOrder"])
    assert number == (3 if ".ms" in template.name else 0), "the first number that is free"
    assert ("PK" in found) == (".ms" in template.name), "the keys of Secure Boot stay"
    option = found[f"Boot{number:04X}"]
    attributes, length = struct.unpack_from("<IH", option)
    assert (attributes, option[6:16].decode("utf-16-le")) == (1, "disk\0")
    path = option[16:]
    assert len(path) == length
    assert path[:4] == b"\x04\x01\x2a\x00", "a hard drive's node of 42 bytes"
    assert struct.unpack_from("<IQQ16sBB", path, 4) == (1, 2048, 4096, GUID, 2, 2)
    assert path[42:44] == b"\x04\x04"
    assert path[46:-4].decode("utf-16-le") == "\\EFI\\debian\\grubx64.efi\0"
    assert path[-4:] == b"\x7f\xff\x04\x00"


def test_a_damaged_store_is_refused() -> None:
    template = TEMPLATES[1]
    if not template.exists():
        pytest.skip("no OVMF here")
    store = bytearray(template.read_bytes())
    store[100:160] = b"\xaa\x55\x3f".ljust(60, b"\xff")  # a variable of 2^33 bytes
    with pytest.raises(ValueError, match="damaged"):
        add_boot_entry(bytes(store), BootFile("x", 1, 1, 1, GUID), "disk")


@pytest.mark.parametrize("store", [b"", bytes(1000), b"\xff" * 131072])
def test_what_is_no_store_is_refused(store: bytes) -> None:
    with pytest.raises(ValueError, match="no firmware volume"):
        add_boot_entry(store, BootFile("x", 1, 1, 1, GUID), "disk")

"""Guests without an agent: boot from CD and floppy, screenshots, keys."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

SMALL = ("--memory", "256MiB", "--vcpus", "1")
#: sfdisk is not in every user's PATH.
PATH = {**os.environ, "PATH": f"/usr/sbin:/sbin:{os.environ.get('PATH', '/usr/bin:/bin')}"}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("apt-get") is None:
        pytest.skip("the media are Debian's packages")
    place = tmp_path_factory.mktemp("media")
    packages = ["memtest86+", "grub-rescue-pc", "grub-efi-amd64-bin", "ipxe"]
    got = subprocess.run(["apt-get", "download", *packages], cwd=place, capture_output=True, check=False)
    if got.returncode:
        pytest.skip(f"no packages: {got.stderr.decode(errors='replace')[-300:]}")
    # Debian 13 has GRUB's images for UEFI in a separate package.
    unsigned = ["apt-get", "download", "grub-efi-amd64-unsigned"]
    subprocess.run(unsigned, cwd=place, capture_output=True, check=False)
    for package in place.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, place / "x"], check=True)
    return place / "x"


@pytest.fixture
def images(cli: Cli) -> Iterator[list[str]]:
    names: list[str] = []
    yield names
    for name in names:
        cli("image", "delete", name, check=False)


def wait_screen(cli: Cli, name: str, says: str) -> str:
    def shown() -> bool:
        return says in cli("screenshot", name, "--text", check=False).stdout.decode()

    wait_until(shown, timeout_s=40)
    return cli.text("screenshot", name, "--text")


def test_a_cd_is_booted_and_typed_at(
    cli: Cli, media: Path, gone: list[str], images: list[str], tmp_path: Path
) -> None:
    gone.append("rescue")
    images.append("rescue-cd")
    cli("image", "import", media / "usr/lib/grub-rescue/grub-rescue-cdrom.iso", "--name", "rescue-cd")
    cli("create", "rescue-cd", "--name", "rescue", *SMALL)
    cli("start", "rescue")
    wait_screen(cli, "rescue", "GNU GRUB")
    assert "GNU GRUB" in cli.text("logs", "rescue"), "the serial console says it too"
    cli("type", "rescue", "c")
    wait_screen(cli, "rescue", "grub>")
    cli("type", "rescue", 'echo "Typed: {a|b}"', "--key", "enter")
    wait_screen(cli, "rescue", "\nTyped: {a|b}")
    _goes_on_with_its_screen(cli, gone)
    cli("screenshot", "rescue", tmp_path / "rescue.png")
    assert (tmp_path / "rescue.png").read_bytes().startswith(b"\x89PNG")
    cli.error("exec", "rescue", "--", "true", says="no bough agent", hint="bough console rescue")
    cli.error("type", "rescue", "--key", "hyper", says="hyper")
    cli.error("image", "delete", "rescue-cd", says="rescue")
    # The next service has the screen as well.
    cli("serve", "--stop")
    with socket.socket(socket.AF_UNIX) as viewer:
        viewer.settimeout(10)
        viewer.connect(cli.text("screen", "rescue", "--print"))
        assert viewer.recv(12) == b"RFB 003.008\n"
    with cli.popen("screen", "rescue", "--listen", "0", stdout=subprocess.PIPE) as offer:
        assert offer.stdout is not None
        port = int(re.findall(rb"[0-9]+", offer.stdout.readline())[-1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as viewer:
            assert viewer.recv(12) == b"RFB 003.008\n"
        offer.terminate()
    cli("stop", "rescue", "--force")
    cli.error("screenshot", "rescue", tmp_path / "x.png", says="stopped")


def _goes_on_with_its_screen(cli: Cli, gone: list[str]) -> None:
    """A picture from before a snapshot must be kept: the guest does not draw it again."""
    shown = cli.text("screenshot", "rescue", "--text")
    gone.append("branch")
    cli("fork", "rescue", "branch")
    assert cli.text("screenshot", "branch", "--text") == shown
    cli("suspend", "branch")
    cli("resume", "branch")
    assert cli.text("screenshot", "branch", "--text") == shown
    cli("type", "branch", "echo after", "--key", "enter")
    wait_screen(cli, "branch", "\nafter")
    assert cli.text("screenshot", "rescue", "--text") == shown


def test_a_floppy_is_booted(cli: Cli, media: Path, gone: list[str], images: list[str]) -> None:
    gone.append("floppy")
    images.append("rescue-floppy")
    floppy = media / "usr/lib/grub-rescue/grub-rescue-floppy.img"
    cli("image", "import", floppy, "--format", "raw", "--name", "rescue-floppy")
    cli("create", "rescue-floppy", "--name", "floppy", *SMALL)
    cli("start", "floppy")
    wait_screen(cli, "floppy", "GNU GRUB")
    cli.error("create", "rescue-floppy", "--cdrom", "rescue-floppy", says="is a floppy, not a cdrom")


@pytest.mark.parametrize(
    ("loader", "says"),
    [("gcdx64.efi", "grub>"), ("ipxe.efi", "iPXE")],
)
def test_a_stick_is_booted_by_uefi(
    cli: Cli, media: Path, gone: list[str], images: list[str], tmp_path: Path, loader: str, says: str
) -> None:
    gone.append("stick")
    images.append("stick")
    stick = tmp_path / "stick.img"
    with stick.open("wb") as file:
        file.truncate(32 << 20)
    for words in (
        ["mformat", "-i", stick, "::"],
        ["mmd", "-i", stick, "::/EFI", "::/EFI/BOOT"],
        ["mcopy", "-i", stick, next(media.rglob(loader)), "::/EFI/BOOT/BOOTX64.EFI"],
    ):
        subprocess.run(words, check=True)
    cli("image", "import", stick, "--name", "stick")
    cli("create", "stick", "--name", "stick", *SMALL)
    if says == "iPXE":  # no server offers a boot file
        cli.error("start", "stick", says="found nothing to boot")
    else:
        cli("start", "stick")
    wait_until(lambda: says in cli.text("logs", "stick"), timeout_s=90)
    if says == "grub>":
        cli("type", "stick", "ls (hd0)/EFI", "--key", "enter")
        wait_until(lambda: "boot/" in cli.text("logs", "stick").lower(), timeout_s=30)
        _hand_over(cli, gone, tmp_path / "stick.bough")


def make_uefi_disk(path: Path, loader: Path, place: str) -> Path:
    """Make a disk as a UEFI installation leaves it: a GPT, an EFI system partition, `loader` at `place`."""
    with path.open("wb") as file:
        file.truncate(48 << 20)
    table = "label: gpt\nstart=2048, size=65536, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n"
    subprocess.run(["sfdisk", "--quiet", path], input=table.encode(), check=True, env=PATH)
    fat = f"{path}@@{2048 * 512}"
    subprocess.run(["mformat", "-i", fat, "-T", "65536", "-h", "16", "-s", "32", "::"], check=True)
    directories = [f"::{parent}" for parent in reversed(Path(place).parents) if str(parent) != "/"]
    subprocess.run(["mmd", "-i", fat, *directories], check=True)
    subprocess.run(["mcopy", "-i", fat, loader, f"::{place}"], check=True)
    return path


def test_a_disk_with_its_vendors_loader_is_booted_by_uefi(
    cli: Cli, media: Path, gone: list[str], images: list[str], tmp_path: Path
) -> None:
    gone.append("vendor")
    images.append("vendor")
    disk = make_uefi_disk(tmp_path / "disk.raw", next(media.rglob("gcdx64.efi")), "/EFI/debian/grubx64.efi")
    cli("image", "import", disk, "--name", "vendor")
    (image,) = [one for one in cli.json("image", "list") if "vendor" in one["labels"]]
    assert image["firmware"] == ["uefi"]
    assert cli.json("image", "info", "vendor", "--arch", "x86_64") == image
    assert image["digest"] in cli.text("image", "info", "vendor")
    cli("create", "vendor", "--name", "vendor", *SMALL)
    assert cli.json("info", "vendor")["hardware"]["firmware"] == "uefi"
    assert "vendor shows the prompt of its boot loader: 'grub>'" in cli("start", "vendor").stderr.decode()
    assert "grub>" in cli.text("logs", "vendor")
    # The firmware keeps the entry for the next boot.
    cli("stop", "vendor", "--force")
    cli("start", "vendor")
    assert cli.text("logs", "vendor").count("grub>") > 1


def _hand_over(cli: Cli, gone: list[str], bundle: Path) -> None:
    """GRUB continues on import, in the middle of a line; then the firmware there boots it again."""
    gone.append("other")
    cli("type", "stick", "echo handed-")
    cli("export", "stick", bundle)
    cli("import", bundle, "--name", "other")
    cli("type", "other", "over", "--key", "enter")
    wait_until(lambda: "\nhanded-over" in cli.text("logs", "other").replace("\r", ""), timeout_s=30)
    cli("stop", "other", "--force")
    cli("start", "other")
    wait_until(lambda: cli.text("logs", "other").count("grub>") > 1, timeout_s=90)


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_memtest_by_either_firmware(
    cli: Cli, media: Path, gone: list[str], images: list[str], tmp_path: Path, firmware: str
) -> None:
    gone.append("memtest")
    images.append("memtest")
    cli("image", "import", media / "usr/lib/memtest86+/memtest86+x64.iso", "--name", "memtest")
    # The firmware tries an empty disk first, as before an installation.
    cli("create", "memtest", "--name", "memtest", "--disk", "64MiB", "--firmware", firmware, *SMALL)
    cli("start", "memtest")
    if firmware == "bios":
        assert "Testing:" in wait_screen(cli, "memtest", "Testing:")
        return
    picture = tmp_path / "memtest.png"

    def shows_memtest() -> bool:
        # The blue field covers most of the screen, in graphics mode.
        cli("screenshot", "memtest", picture)
        return b"IHDR" in picture.read_bytes() and _is_blue(picture)

    wait_until(shows_memtest, timeout_s=60)
    cli.error("screenshot", "memtest", "--text", says="graphics")


def _is_blue(picture: Path) -> bool:
    """Return whether much of the picture is dark blue."""
    with Image.open(picture) as image:
        data = image.convert("RGB").resize((80, 60)).tobytes()
    pixels = zip(data[0::3], data[1::3], data[2::3], strict=True)
    return sum(r < 60 and g < 60 < b for r, g, b in pixels) > 80 * 60 // 16


def test_a_cd_in_a_machine_with_a_disk(cli: Cli, debian: str, media: Path, gone: list[str]) -> None:
    gone.append("both")
    iso = media / "usr/lib/ipxe/ipxe.iso"
    cli("create", debian, "--name", "both", "--cdrom", iso, "--boot", "cdrom", "--display", *SMALL)
    cli("start", "both", "--no-wait")
    assert "iPXE" in wait_screen(cli, "both", "iPXE")
    digest = cli.json("info", "both")["spec"]["cdrom"]
    cli("delete", "both", "--force")
    cli("image", "delete", digest)


@pytest.mark.parametrize(
    ("firmware", "says"), [("bios", "found nothing to boot"), ("uefi", "found nothing to boot")]
)
def test_a_disk_that_boots_nothing_is_told(
    cli: Cli, gone: list[str], images: list[str], tmp_path: Path, firmware: str, says: str
) -> None:
    gone.append("void")
    images.append("void")
    disk = tmp_path / "void.raw"
    with disk.open("wb") as file:
        file.truncate(16 << 20)
        file.write(b"\xfa\xf4".ljust(510, b"\0"))  # no boot sector
    cli("image", "import", disk, "--format", "raw", "--firmware", firmware, "--name", "void")
    cli("create", "void", "--name", "void", *SMALL)
    cli.error("start", "void", says=says, hint="bough console void")
    told = cli.json("info", "void")
    assert (told["state"], told["seen"]["failed"]) == ("running", True)
    assert "nothing to boot" in cli.text("info", "void")

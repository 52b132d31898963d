"""Signs of a guest's boot, in texts that real guests print."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bough.machines.boot_signs import MOST_CHARACTERS, clean, last_line, recognize

SEEN = [
    ("Debian GNU/Linux 12 debian ttyS0\r\n\r\ndebian login: ", "login", False),
    ("\x1b[0m\r\nFedora Linux 40\r\nKernel 6.8 on x86_64 (ttyS0)\r\n\r\nhost login: ", "login", False),
    ("Last login: Mon Nov 30 02:22:03 on ttyS0\r\nroot@debian:~# ", None, False),
    ("Please unlock disk vda3_crypt: ", "passphrase", False),
    ("Enter passphrase for /dev/vda2: ", "passphrase", False),
    ("\U0001f510 Please enter passphrase for disk QEMU (root): (press TAB for no echo) ", None, False),
    ("[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
     "[    1.3] CPU: 0 PID: 1 Comm: swapper/0\r\n", "panic", True),
    ("Gave up waiting for root file system device.  Common problems:\r\n"
     "ALERT!  UUID=12-34 does not exist.  Dropping to a shell!\r\n\r\n(initramfs) ", "no-root", True),
    ("You are in emergency mode. After logging in, type \"journalctl -xb\" to view\r\n"
     "Give root password for maintenance\r\n(or press Control-D to continue): ", "emergency", True),
    ("Booting from Hard Disk...\r\nBoot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n",
     "nothing-to-boot", True),
    ("Booting from Hard Disk...\r\nBoot failed: not a bootable disk\r\n\r\nBooting from DVD/CD...\r\n",
     None, False),
    ("\x1b[2J\x1b[01;01HBdsDxe: No bootable option or device was found.\r\n", "nothing-to-boot", True),
    ('BdsDxe: starting Boot0001 "EFI Internal Shell" from Fv(7CB8)/FvFile(7C04)\r\n\x1b[01;01H'
     "UEFI Interactive Shell v2.2\r\nEDK II\r\nShell> ", "firmware-shell", True),
    ("\x1b[01;01HUEFI Interactive Shell v2.2\r\nEDK II\r\nShell> ", "firmware-shell", False),
    ('BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x2,0x0): Access Denied\r\n'
     "BdsDxe: No bootable option or device was found.\r\n", "refused", True),
    ("error: no such partition.\r\nEntering rescue mode...\r\ngrub rescue> ", "loader-rescue", True),
    ("Welcome to GRUB!\r\n\x1b[02;24HGNU GRUB  version 2.06\r\ngrub> ", "loader-prompt", False),
    ("[    0.0] Kernel panic - not syncing: test\r\n[  10.0] Rebooting\r\nDebian\r\nhost login: ",
     "login", False),
    ("GNU GRUB  version 2.06\r\n     Use the ^ and v keys to select which entry is highlighted.\r\n"
     "      Press enter to boot the selected OS, `e' to edit\r\n   *GNU/Linux   Memtest86+  ", "menu", False),
    ("      Press enter to boot the selected OS, `e' to edit\r\n   *GNU/Linux\r\n"
     "   The highlighted entry will be executed automatically in 4s.   ", None, False),
    ("Loading Memtest86+.......", "memory-test", False),
    ("Memtest86+ v6.10     | Intel Core\r\nTesting: 3MB - 256MB", "memory-test", False),
    ("[    2.1] VFS: Cannot open root device \"/dev/vda1\" or unknown-block(0,0): error -6\r\n"
     "[    2.2] Please append a correct \"root=\" boot option; here are the available partitions:\r\n"
     "[    2.3] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
     "[    2.4] ---[ end Kernel panic ]---\r\n", "no-root", True),
    ("initramfs: Waiting for /dev/vda3 to appear\r\n"
     "initramfs: Timeout while waiting for devices for / (and possibly /usr) filesystems to appear "
     "(did you specify the correct ones?)\r\ninitramfs: Will cause kernel panic in 10s...\r\n"
     "[  191.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n",
     "no-root", True),
    ("initramfs: Waiting for PARTUUID=1234-5678 to appear\r\n", "no-root", True),
    ("[    2.4] Waiting for root device PARTUUID=6c097903-02...\r\n", "no-root", True),
    ("[    2.4] Waiting for root device /dev/vda1...\r\n[    2.6] EXT4-fs (vda1): mounted\r\n", None, False),
    ("mount: mounting /dev/vda3 on /sysroot failed: No such file or directory\r\nMounting root: failed. \r\n"
     "initramfs emergency recovery shell launched. Type 'exit' to continue boot\r\n"
     "sh: can't access tty; job control turned off\r\n~ # ", "no-root", True),
    ("ERROR: Unable to find root device 'UUID=1-2'.\r\nYou are being dropped to a recovery shell\r\n"
     "    Type 'exit' to try and continue booting\r\nsh: can't access tty; job control turned off\r\n"
     "[rootfs ]# ", "no-root", True),
    ("[  130.1] dracut-initqueue[331]: Warning: dracut-initqueue: timeout, still waiting for following\r\n",
     "no-root", True),
    ("dracut Warning: No root device \"block:/dev/disk/by-uuid/1-2\" found\r\n"
     "Kernel panic - not syncing: Attempted to kill init!\r\nPid: 1\r\n", "no-root", True),
    ("Cannot open access to console, the root account is locked.\r\nSee sulogin(8) man page.\r\n\r\n"
     "Press Enter to continue.\r\n", "emergency", True),
    ("Linux version 6.1\r\n[  OK  ] Started something.\r\n", None, False),
    ("", None, False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "failed"), SEEN)
def test_what_is_seen(text: str, kind: str | None, failed: bool) -> None:
    sight = recognize(text)
    assert (sight.kind if sight else None, sight.failed if sight else False) == (kind, failed)


def test_the_guests_words_are_quoted_cleaned_and_short() -> None:
    sight = recognize("\x1b]0;title\x07Kernel panic - not syncing: \x1b[31m\u202eevil" + "x" * 5000)
    assert sight is not None
    assert sight.line.startswith("0;titleKernel panic - not syncing: evil")
    assert len(sight.line) <= 160
    assert last_line("first\r\n\x1b[1mlast \x07 one\x1b[0m\r\n\r\n") == "last one"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*(text for text, _, _ in SEEN), "\x1b", "\x1b[", " ", "(initramfs)", "login:"]))
)
def test_any_mixture_is_clean(parts: list[str]) -> None:
    text = "".join(parts)
    sight = recognize(text)
    assert sight is None or sight.line.isprintable()
    assert "\x1b" not in clean(text)


@pytest.mark.parametrize("part", [" ", "\x1b[", "login:", "passphrase", "ALERT! ", "\n", "a", "\x1b[0;0;"])
def test_no_text_takes_long(part: str) -> None:
    began = time.process_time()
    recognize(part * (4 * MOST_CHARACTERS // len(part)))
    assert time.process_time() - began < 2

"""Signs of a guest's boot in the text on its console or screen, for guests without an agent.

The text is hostile: the guest wrote it. Only the text's end is searched, control characters are removed, and
quotes are short. A recognized sign is reported and has no other effect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Length of the searched end of a text.
MOST_CHARACTERS = 8192
_MOST_LINE = 160
#: ECMA-48: sequences that place the cursor become a new line; the other sequences are removed.
_PLACES = re.compile(r"\x1b\[[0-9;]{0,16}[Hf]")
_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]{0,32}[ -/]{0,4}[@-~]?|[ -/]{0,4}[0-~]?)")
#: Characters that reorder or hide their neighbours.
_HIDING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


@dataclass(frozen=True)
class Sight:
    """A recognized sign.

    Attributes:
        kind: stable name for programs: "login".
        says: description for users: "a login prompt".
        line: the guest's text, cleaned.
        failed: the guest cannot boot without help.
        may_pass: the guest may continue by itself; the sign counts if no output follows.
    """

    kind: str
    says: str
    line: str
    failed: bool = False
    may_pass: bool = False

    @property
    def text(self) -> str:
        return f"{self.says}: {self.line!r}" if self.line else self.says


@dataclass(frozen=True)
class _Sign:
    kind: str
    says: str
    pattern: re.Pattern[str]
    failed: bool = False
    may_pass: bool = False


def _at_end(pattern: str) -> re.Pattern[str]:
    """Match a prompt: only white space may follow."""
    return re.compile(rf"(?:{pattern})\s*\Z", re.IGNORECASE | re.MULTILINE)


def _anywhere(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


_SIGNS = (
    _Sign("login", "a login prompt", _at_end(r"^[^\n]{0,100}\blogin:")),
    _Sign(
        "passphrase",
        "a prompt for a passphrase",
        _at_end(r"^[^\n]{0,120}(?:unlock disk|passphrase|password)[^\n]{0,120}:[ *]{0,8}"),
    ),
    _Sign(
        "panic",
        "its kernel panicked",
        _anywhere(r"^[^\n]{0,40}kernel panic - not syncing[^\n]{0,160}"),
        True,
    ),
    _Sign(
        "no-root",
        "its kernel found no root file system",
        re.compile(
            r"^(?:[^\n]{0,40}gave up waiting for (?:the )?root[^\n]{0,100}"
            r"|[^\n]{0,40}alert!\s{1,4}\S{1,120} does not exist[^\n]{0,60}"
            r"|\(initramfs\)\s*\Z|[^\n]{0,40}dracut:/?#\s*\Z"
            r"|[^\n]{0,40}timeout while waiting for devices for /[^\n]{0,80}"  # tiny-initramfs
            r"|[^\n]{0,40}vfs: cannot open root device[^\n]{0,120}"
            r"|[^\n]{0,40}mounting root(?: failed|: failed)[^\n]{0,40}"  # Alpine
            r"|[^\n]{0,40}unable to find root device[^\n]{0,120}"  # mkinitcpio
            r"|[^\n]{0,40}no root device [^\n]{0,120} found[^\n]{0,20})",  # old dracut
            re.IGNORECASE | re.MULTILINE,
        ),
        True,
    ),
    _Sign(
        "no-root",
        "it waits for its root file system",
        _at_end(
            r"^[^\n]{0,40}(?:waiting for root (?:device|file system)[^\n]{0,120}"
            r"|initramfs: waiting for [^\n]{1,120} to appear[^\n]{0,80}"
            r"|dracut-initqueue[^\n]{0,40}timeout[^\n]{0,80})"
        ),
        True,
        may_pass=True,
    ),
    _Sign(
        "emergency",
        "its emergency mode",
        _anywhere(
            r"^[^\n]{0,40}(?:you are in emergency mode|give root password for maintenance"
            r"|press enter for maintenance|the root account is locked"
            r"|(?:launching )?initramfs emergency recovery shell"
            r"|being dropped (?:in)?to an? (?:recovery|emergency) shell)[^\n]{0,80}"
        ),
        True,
    ),
    _Sign("firmware-shell", "the UEFI shell", _anywhere(r"^uefi interactive shell[^\n]{0,40}")),
    _Sign(
        "nothing-to-boot",
        "its firmware found nothing to boot",
        _anywhere(
            r"^[^\n]{0,60}(?:no bootable (?:device|option)|operating system not found"
            r"|missing operating system|nothing to boot|reboot and select proper boot device)[^\n]{0,60}"
        ),
        True,
    ),
    _Sign("loader-rescue", "its boot loader found no system", _at_end(r"^[^\n]{0,20}grub rescue>"), True),
    _Sign("loader-prompt", "the prompt of its boot loader", _at_end(r"^[^\n]{0,20}(?:grub|ipxe)>")),
    _Sign(
        "memory-test",
        "a test of its memory",
        _anywhere(r"^\s{0,4}(?:loading memtest86\+|memtest86\+ v\d)[^\n]{0,20}"),
    ),
    _Sign(
        "menu",
        "a boot menu that waits for a key",
        _anywhere(r"^[^\n]{0,20}press enter to boot the selected os"),
    ),
)
#: The same sign after a line that shows the shell's origin: the firmware, not a disk.
_INTERNAL = _Sign(
    "firmware-shell",
    "its firmware found nothing to boot and runs its own shell",
    _anywhere(r'starting boot\w{4} "efi internal shell"'),
    True,
)


#: The cause, if the firmware then found nothing to boot.
_REFUSED = _Sign(
    "refused",
    "its firmware, with Secure Boot, refused the boot loader",
    _anywhere(r"^[^\n]{0,20}bdsdxe: failed to load [^\n]{1,200}: access denied[^\n]{0,60}"),
    True,
)
#: A boot menu with a countdown, which continues without a key.
_COUNTDOWN = _anywhere(r"executed automatically in \d")


def recognize(text: str) -> Sight | None:
    """Return the last sign in the text, or None."""
    text = clean(text)
    found = [
        (matches[-1].end(), sign, matches[-1][0])
        for sign in _SIGNS
        if (matches := list(sign.pattern.finditer(text)))
    ]
    if not found:
        return None
    _, sign, words = max(found, key=lambda one: one[0])
    if sign.kind in ("panic", "emergency"):  # of which the missing root is the cause
        causes = [one for one in found if one[1].kind == "no-root" and not one[1].may_pass]
        _, sign, words = max(causes, key=lambda one: one[0], default=(0, sign, words))
    if sign.kind == "menu" and _COUNTDOWN.search(text):
        return None
    if sign.kind == _INTERNAL.kind and _INTERNAL.pattern.search(text):
        sign = _INTERNAL
    if sign.kind in ("nothing-to-boot", _INTERNAL.kind) and (refused := _REFUSED.pattern.search(text)):
        sign, words = _REFUSED, refused[0]
    return Sight(sign.kind, sign.says, _one_line(words), sign.failed, sign.may_pass)


def last_line(text: str) -> str:
    """Return the last non-empty line."""
    lines = [line for line in map(_one_line, clean(text).split("\n")) if line]
    return lines[-1] if lines else ""


def clean(text: str) -> str:
    """Return the text's end, in lines, without characters that control a terminal."""
    text = _SEQUENCES.sub("", _PLACES.sub("\n", text[-MOST_CHARACTERS:]))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in text if c == "\n" or (c.isprintable() and c not in _HIDING))


def _one_line(words: str) -> str:
    return " ".join(words.split())[:_MOST_LINE]

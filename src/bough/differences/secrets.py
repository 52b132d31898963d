"""What a diff never shows: private keys, hashes of passwords, and files that not every user may read.

The guest's own rights decide first: a file that other users of the guest cannot read is named only. sudo's
rules and crontabs are an exception: they are the usual subject of a comparison, and hold no key as a rule.
"""

from __future__ import annotations

import re

_ALWAYS = re.compile(
    rb"/etc/(?:g?shadow-?|passwd-|group-|security/opasswd)|.*/ssh_host_[^/]*_key|.*\.(?:key|keytab|p12|pfx|jks|kdbx)"
    rb"|.*/(?:id_(?:rsa|dsa|ecdsa|ed25519)[^/.]*|\.netrc|\.pgpass|\.my\.cnf|\.git-credentials)"
    rb"|/etc/(?:ssl/private|wireguard|letsencrypt|NetworkManager/system-connections|ppp/(?:chap|pap)-secrets)\b.*"
    rb"|/etc/wpa_supplicant/.*|/etc/ipsec\.secrets|/etc/cryptsetup-keys\.d/.*",
    re.DOTALL,  # a name may contain a newline
)
_READABLE_BY_ROOT = re.compile(rb"/etc/sudoers(?:\.d/.*)?|/var/spool/cron/.*", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY|PuTTY-User-Key-File|AGE-SECRET-KEY-1")
_OTHERS_READ = 0o004
_NAME = (
    r"(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|psk|credentials?)"
)
#: After the name: "= value", ": value", or one word.
_BETWEEN = r"[\w.-]*[\"']?\s*(?:[=:]\s*|\s+(?=[^\s=:]\S*\s*$))"
_SWITCH = r"[\"']?(?:yes|no|true|false|on|off|none|null|[01])?[\"']?[;,]?\s*$"
#: name = value, where the name sounds secret and the value is no switch; the password of an address; a hash
#: of crypt(5).
_MASKS = (
    re.compile(rf"(?i)({_NAME}{_BETWEEN})(?!{_SWITCH})(\S.*)"),
    re.compile(r"([a-z][a-z0-9+.-]*://[^/\s:@]*:)([^@\s/]+)(?=@)"),
    re.compile(r"()(\$(?:1|2[abxy]?|5|6|7|y|gy|sha1|md5|apr1|argon2\w*)\$[^\s:'\"]{4,})"),
)
MASK = "[withheld]"


def why_withheld(path: bytes, modes: list[int], contents: list[bytes]) -> str | None:
    """Return why a diff of a file is not shown; None: it is shown.

    Args:
        modes, contents: of the versions that exist.
    """
    if _ALWAYS.fullmatch(path):
        return "it holds secrets"
    if any(_KEY.search(content) for content in contents):
        return "it holds a private key"
    closed = any(not mode & _OTHERS_READ for mode in modes)
    if closed and not _READABLE_BY_ROOT.fullmatch(path):
        return "not every user of the guest may read it"
    return None


def mask(line: str) -> str:
    """Return a line of a diff without the secrets that are recognized."""
    for pattern in _MASKS:
        line = pattern.sub(lambda match: match[1] + MASK, line)
    return line

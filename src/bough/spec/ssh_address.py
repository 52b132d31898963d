"""The address of a live host: ssh://[user@]host[:port]."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from bough.errors import InvalidInput

#: A name of ssh's configuration, a host name, or an IPv4 or IPv6 address. It never begins with "-".
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,254}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,63}")


@dataclass(frozen=True)
class SshAddress:
    """A destination for ssh(1).

    Attributes:
        user, port: None: as in the user's ssh configuration.
    """

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        return f"ssh://{user}{host}{port}"

    @property
    def options(self) -> list[str]:
        """The words for ssh's command line, the destination last."""
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return [*user, *port, "--", self.host]


def parse_address(text: str) -> SshAddress:
    """Return the address.

    Raises:
        InvalidInput: `text` is no address of a host.
    """
    hint = "write ssh://[user@]host[:port], for example ssh://root@db.example.org"
    if not text.isprintable():
        raise InvalidInput(f"{text[:200]!r} is not an address", hint=hint)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidInput(f"{text[:200]!r} is not an address", hint=hint) from None
    user, host = parts.username, parts.hostname
    if parts.scheme != "ssh" or not host:
        raise InvalidInput(f"{text[:200]!r} is not an ssh address", hint=hint)
    if parts.password is not None:
        raise InvalidInput("an ssh address contains no password", hint="ssh asks for the password")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidInput(f"{text[:200]!r} names a path; a capture copies the whole host", hint=hint)
    # urlsplit writes the host in lower case; names in ~/.ssh/config may have capitals.
    start = text.lower().rindex(host, 0, len(text))
    host = text[start : start + len(host)]
    if not _HOST.fullmatch(host) or (user is not None and not _USER.fullmatch(user)):
        raise InvalidInput(f"{text[:200]!r} contains characters that no host or user has", hint=hint)
    return SshAddress(host, user, port)

"""Check OpenPGP signatures of checksum lists against known fingerprints, with gpgv in the jail."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from pathlib import Path

from bough.errors import BadImage
from bough.images.confined import Confinement, find_program, run_confined

_BLOCK = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)


def parse_key(data: bytes) -> bytes:
    """Return a keyring for gpgv from keys in binary form or ASCII armour (RFC 9580, 6.2).

    Raises:
        BadImage: the data contains no key, or a damaged key.
    """
    if b"-----BEGIN PGP" not in data[:4096]:
        if not data or not data[0] & 0x80:
            raise BadImage("the file of the key contains no OpenPGP key")
        return data
    keys = b""
    for block in _BLOCK.findall(data):
        lines = [line.strip() for line in block.splitlines()]
        body = lines[lines.index(b"") + 1 :] if b"" in lines else lines
        try:
            keys += base64.b64decode(b"".join(line for line in body if line[:1] != b"="), validate=True)
        except binascii.Error:
            raise BadImage("the OpenPGP key is damaged") from None
    if not keys:
        raise BadImage("the file of the key contains no OpenPGP key")
    return keys


async def check_signature(
    text: bytes,
    signature: bytes | None,
    keyring: bytes,
    fingerprints: Collection[str],
    work: Path,
    confinement: Confinement,
) -> bytes:
    """Return the signed part of `text`. One of `fingerprints` must have signed it.

    Args:
        signature: a detached signature. None: `text` is clear-signed, and only the signed part counts.
        work: a private directory for files that gpgv reads.

    Raises:
        BadImage: `text` has no good signature of these keys, or a bad signature.
        HostLacks: gpgv is not installed.
    """
    gpgv = find_program("gpgv")
    given = {"keyring": keyring, "text": text, **({"signature": signature} if signature is not None else {})}
    for name, content in given.items():
        (work / name).write_bytes(content)
        confinement.give(work / name)
    out = work / "signed"
    out.touch(0o600)
    confinement.give(out)
    heard = bytearray()

    async def told(data: bytes) -> None:
        heard.extend(data[: 64 * 1024 - len(heard)])

    argv = [gpgv, "--status-fd", "1", "--keyring", str(work / "keyring"), "--homedir", "/tmp"]
    detached = [str(work / "signature"), str(work / "text")]
    argv += detached if signature is not None else ["--output", str(out), str(work / "text")]
    done = await run_confined(
        confinement, argv, read_only=[work / name for name in given], writable=[out], on_output=told
    )
    confinement.take_back(out)
    signers, is_bad = read_status(bytes(heard))
    if is_bad or not signers & set(fingerprints):
        who = f"it is signed by {', '.join(sorted(signers))}" if signers and not is_bad else ""
        who = who or _reason(bytes(heard), done.output)
        raise BadImage(
            f"the list of checksums has no valid signature: {who}",
            hint="nothing was used; update the catalogue: bough image catalogue update",
            output=done.output[-1000:],
        )
    if signature is not None:
        return text
    with out.open("rb") as stream:
        return stream.read(len(text))


def read_status(status: bytes) -> tuple[set[str], bool]:
    """Return the primary keys with a good signature, and whether a signature is bad (GnuPG doc/DETAILS).

    A key is named by the fingerprint.
    """
    signers: set[str] = set()
    is_good = is_bad = False
    for line in status.decode("ascii", "replace").splitlines():
        word, *rest = line.removeprefix("[GNUPG:] ").split()[:12] or [""]
        if word == "NEWSIG":
            is_good = False
        elif word == "GOODSIG":  # not EXPKEYSIG, REVKEYSIG, EXPSIG
            is_good = True
        elif word == "BADSIG":
            is_bad = True
        elif word == "VALIDSIG" and is_good and len(rest) >= 10:
            signers.add(rest[9].upper())
    return signers, is_bad


def _reason(status: bytes, output: str) -> str:
    for word, what in (
        (b"BADSIG", "the signature does not match the list"),
        (b"REVKEYSIG", "the key was revoked"),
        (b"EXPKEYSIG", "the key has expired"),
        (b"EXPSIG", "the signature has expired"),
        (b"NO_PUBKEY", "it is signed by a key that is not the publisher's"),
    ):
        if word in status:
            return what
    return output.rpartition("\n")[2][:200] or "there is no signature"

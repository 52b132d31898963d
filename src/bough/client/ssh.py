"""bough's own ssh key, for logins to every machine with the agent.

A user may have no key, or more keys than sshd lets a client try. So each BOUGH_HOME has its own key. The
machine accepts the key from the first connection on: the agent adds the key for the user of the login.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bough.errors import GuestRefused, HostLacks
from bough.storage import no_space_is_told, sync_directory, write_atomically

if TYPE_CHECKING:
    from bough.client.guest import RunningGuest
    from bough.paths import Home

_COMMENT = "bough"
_TIMEOUT_S = 30.0
_MOST_TOLD_BYTES = 2000
#: Add the key of $1 for the user of the script, unless the file has the key already. A last line
#: without a newline gets one first.
_SCRIPT = r"""
umask 077
keys="$HOME/.ssh/authorized_keys"
grep -qxF -e "$1" "$keys" 2>/dev/null && exit 0
mkdir -p "$HOME/.ssh" || exit 1
[ ! -s "$keys" ] || [ -z "$(tail -c 1 "$keys")" ] || echo >> "$keys" || exit 1
printf '%s\n' "$1" >> "$keys"
"""


def own_key(home: Home) -> tuple[Path, str]:
    """Return the file of the private key and the line of the public key. Create both if they do not exist.

    Raises:
        HostLacks: BOUGH_HOME cannot be written to, or the key cannot be read.
        NoSpace
    """
    try:
        if not home.ssh.exists():
            with no_space_is_told("bough's own ssh key", home.root):
                _make_key(home)
        return home.ssh_key, home.ssh_public_key.read_text().strip()
    except (OSError, ValueError) as error:
        raise HostLacks(
            f"bough's own ssh key {home.ssh_key} cannot be used: {error}",
            hint=f"remove {home.ssh}: bough makes a new key, which machines accept at the next login",
        ) from error


def _make_key(home: Home) -> None:
    """Make both files or none: one rename puts both in place."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    pair = Ed25519PrivateKey.generate()
    public = pair.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    fresh = Path(tempfile.mkdtemp(dir=home.incoming, prefix="ssh-"))  # mode 0700
    try:
        made = fresh / home.ssh_key.name
        write_atomically(made, pair.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        write_atomically(fresh / home.ssh_public_key.name, f"{public} {_COMMENT}\n".encode())
        fresh.rename(home.ssh)
        sync_directory(home.root)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise  # else another process made a key at the same time, and that key stays
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def authorize(machine: RunningGuest, user: str, public_key: str) -> None:
    """Let the key log in as `user` of a machine.

    Raises:
        GuestRefused: there is no such user, or the key could not be written down; says why.
        BoughError, TimeoutError: the machine does not answer.
    """
    told = b""
    with machine.spawn("/bin/sh", "-c", _SCRIPT, "sh", public_key, user=user, as_image=False) as process:
        process.close_stdin()
        while (output := process.read(_TIMEOUT_S)) is not None:
            told += output[1] if len(told) < _MOST_TOLD_BYTES else b""
        status = process.exit_status
    if status is None or status.shell_code != 0:
        why = told.decode(errors="replace").strip()[-_MOST_TOLD_BYTES:]
        raise GuestRefused(why or "the command in the guest failed")

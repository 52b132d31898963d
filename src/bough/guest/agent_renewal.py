"""Secrets of a fork outside of its identity: seeds of the random generator, and keys of dropbear.

The parent's disk has a seed that its last shutdown or boot wrote. Two forks that boot from the same seed
would begin with the same randomness.
"""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH105, PTH108, PTH112, PTH208

from __future__ import annotations

import os

from bough.guest import agent_init
from bough.guest.agent_calls import run

#: systemd, sysvinit, OpenRC's urandom, and seedrng of OpenRC and busybox.
_SEEDS = (
    *("/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/misc/random-seed"),
    *("/var/lib/seedrng/seed.credit", "/var/lib/seedrng/seed.no-credit"),
)
_MOST_SEED_BYTES = 4096
_DROPBEAR = "/etc/dropbear"
#: Kinds that take an emulated guest less than a second. A key of another kind is removed.
_QUICK_KINDS = ("ed25519", "ecdsa")
_RESTARTS = {
    agent_init.SYSTEMD: ("systemctl", "try-restart"),
    agent_init.RUNIT: ("sv", "restart"),
}


def renew_seeds(root: str = "") -> None:
    """Overwrite the seeds that exist, with as many fresh bytes."""
    for path in _SEEDS:
        try:
            fd = os.open(root + path, os.O_WRONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # the guest has no such seed, or the disk is read-only
        try:
            os.write(fd, os.urandom(min(max(os.fstat(fd).st_size, 32), _MOST_SEED_BYTES)))
        finally:
            os.close(fd)


def renew_dropbear_keys() -> None:
    """Make new host keys of dropbear, if it has keys. dropbear reads keys only at its start."""
    if not os.path.isdir(_DROPBEAR):
        return
    names = [name for name in os.listdir(_DROPBEAR) if name.startswith("dropbear_") and "_host_key" in name]
    for name in names:
        path = f"{_DROPBEAR}/{name}"
        kind = name.split("_")[1]
        fresh = path + ".bough-new"
        if kind in _QUICK_KINDS and _run(["dropbearkey", "-t", kind, "-f", fresh]):
            os.replace(fresh, path)
        else:
            os.unlink(path)
    if names:
        _restart("dropbear")


def _restart(service: str) -> None:
    init = agent_init.find_init()
    if init in _RESTARTS:
        _run([*_RESTARTS[init], service])
    elif os.path.isdir("/run/openrc"):
        _run(["rc-service", "--ifstarted", service, "restart"])
    else:
        _run([f"/etc/init.d/{service}", "restart"])


def _run(words: list[str]) -> bool:
    try:
        return run(words)[0] == 0
    except OSError:
        return False  # the guest lacks the program

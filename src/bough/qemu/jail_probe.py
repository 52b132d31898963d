"""The strictest jail in which the host's QEMU starts."""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import Any

from bough.errors import HostLacks
from bough.paths import Home
from bough.qemu.argv import SANDBOX
from bough.qemu.binary import QemuBinary
from bough.qemu.cgroup import find_groups
from bough.qemu.facts import cached_fact
from bough.qemu.jail import Jail, Sight, machine_uid, render_jail
from bough.qemu.questions import QUESTION, question, render_questions, run_program
from bough.qemu.syscalls import open_filter


async def probe_jail(qemu: QemuBinary, home: Home, *, refresh: bool = False) -> Jail:
    """Return the host's jail, tried with the QEMU once per boot."""
    bwrap, setpriv = shutil.which("bwrap"), shutil.which("setpriv")

    async def find() -> Any:
        return (await _try_jails(qemu, bwrap, setpriv if os.geteuid() == 0 else None)).to_dict()

    files = [qemu.path, bwrap or "bwrap", setpriv or "setpriv"]
    known = Jail.from_dict(await cached_fact(home, f"jail-{qemu.arch}", files, find, refresh=refresh))
    # Not cached: the result depends on the service's cgroup, and a look is cheap.
    return dataclasses.replace(known, groups=find_groups())


async def _try_jails(qemu: QemuBinary, bwrap: str | None, setpriv: str | None) -> Jail:
    """Return the strictest jail that works."""
    refused: dict[str, str] = {}
    for wrapper in [bwrap, None] if bwrap else [None]:
        for own_proc in (True, False) if wrapper else (True,):
            for system_calls in (True, False):
                jail = Jail(wrapper, setpriv, own_proc, system_calls)
                why = await _try_jail(qemu, jail)
                if why is None:
                    return dataclasses.replace(jail, refused=tuple(_refusals(jail, bwrap, refused).items()))
                refused.setdefault("bwrap" if wrapper else "setpriv", why)
                if system_calls:
                    refused["system calls"] = why
    raise HostLacks(f"{qemu.path} does not start: {next(iter(refused.values()))}", hint="install QEMU again")


async def _try_jail(qemu: QemuBinary, jail: Jail) -> str | None:
    """Return None if QEMU starts in the jail; otherwise the error."""
    sandbox = ["-sandbox", SANDBOX] if jail.system_calls else []
    argv = [qemu.path, *QUESTION, *sandbox, "-qmp", "stdio"]
    uid = probe_uid() if jail.setpriv else None
    outer = open_filter() if jail.bwrap and jail.system_calls else None
    try:
        done = await run_program(
            render_jail(jail, Sight(qemu.path), argv, uid=uid, filter_descriptor=outer),
            question(),
            input_=render_questions("quit"),
            pass_fds=() if outer is None else (outer,),
        )
    finally:
        if outer is not None:
            os.close(outer)
    if done is None:
        return "it did not end in time"
    return None if done.status == 0 else done.stderr.decode(errors="replace").strip()[-300:]


def _refusals(jail: Jail, bwrap: str | None, refused: dict[str, str]) -> dict[str, str]:
    """Return the reasons for the parts that `jail` lacks."""
    told = {}
    if jail.bwrap is None:
        why = refused.get("bwrap", "") if bwrap else "bubblewrap (bwrap) is not installed"
        told = dict.fromkeys(("files", "processes", "network"), why)
        if os.geteuid() != 0:
            told["user"] = why
    if os.geteuid() == 0 and jail.setpriv is None:
        told["user"] = "setpriv is not installed"
    if not jail.system_calls:
        told["system calls"] = refused.get("system calls", "")
    return told


def probe_uid() -> int | None:
    return machine_uid("probe") if os.geteuid() == 0 else None

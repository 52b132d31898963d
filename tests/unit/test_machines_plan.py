"""Limits on the host's resources, from a spec."""

from __future__ import annotations

import os

import pytest

from bough.errors import HostLacks
from bough.machines.plan import check_jail, resolve_limits
from bough.qemu.jail import Jail
from bough.spec import parse_spec
from bough.units import GIB, MIB

FULL = Jail(bwrap="/usr/bin/bwrap", setpriv="/usr/bin/setpriv", system_calls=True, groups=("/g",))
UID = 0x7000_0000 if os.geteuid() == 0 else None


def test_a_whole_jail_is_enough() -> None:
    spec = parse_spec({"image": "debian:12", "uplink": False, "require_jail": True})
    check_jail(spec, FULL, UID)


@pytest.mark.parametrize(
    ("jail", "missing"),
    [
        (Jail(bwrap="/b", setpriv="/s", system_calls=True), ["resources"]),
        (Jail(bwrap="/b", setpriv="/s", groups=("/g",)), ["system calls"]),
        (Jail(setpriv="/s", system_calls=True, groups=("/g",)), ["files", "processes", "network"]),
    ],
)
def test_a_part_that_is_missing_is_named(jail: Jail, missing: list[str]) -> None:
    spec = parse_spec({"image": "debian:12", "uplink": False, "require_jail": True})
    with pytest.raises(HostLacks) as caught:
        check_jail(spec, jail, UID)
    assert set(missing) <= set(caught.value.missing)
    for name in missing:
        assert name in caught.value.message
    check_jail(parse_spec({"image": "debian:12"}), jail, UID)


def test_memory_is_limited_in_any_case() -> None:
    limits = resolve_limits(parse_spec({"image": "debian:12", "memory": "1GiB"}))
    assert limits.process_memory_bytes == 3 * GIB + 128 * MIB
    assert (limits.cpu_percent, limits.disk_bytes_per_s) == (None, None)


def test_limits_that_were_asked_for() -> None:
    asked = {"memory": "2GiB", "cpu": "50%", "disk": "1MiB/s", "iops": 9}
    limits = resolve_limits(parse_spec({"image": "debian:12", "memory": "1GiB", "limits": asked}))
    assert limits.process_memory_bytes == 2 * GIB
    assert (limits.cpu_percent, limits.disk_bytes_per_s, limits.disk_operations_per_s) == (50, MIB, 9)

"""Network cards of a machine: their addresses, their places, and records of earlier versions."""

from __future__ import annotations

from typing import Any

import pytest

from bough.errors import InvalidSpec, NotFound
from bough.machines.mac_address import choose_mac_addresses
from bough.machines.nics import (
    NoNetworks,
    check_networks,
    plan_nics,
    renew_mac_addresses,
    resolve_nics,
    uplink_backend,
)
from bough.machines.record import Hardware, MachineRecord, Nic
from bough.networks.switch_port import SwitchPort
from bough.spec import MachineSpec, parse_spec

MAC = "52:54:00:aa:bb:cc"
OLD = {
    "arch": "x86_64",
    "machine_type": "pc-q35-7.2",
    "cpu_model": "EPYC",
    "firmware": "bios",
    "uuid": "u",
    "vmgenid": "v",
    "uid": None,
}


class Networks:
    """Networks "back" and "front" whose ports are named after the machine."""

    def names(self, project: str | None = None) -> tuple[str, ...]:
        return ("back", "front")

    def port(self, network: str, machine_id: str, nic: str, project: str | None = None) -> SwitchPort:
        return SwitchPort(f"/run/{network}/{machine_id}-{nic}")


def spec_with(*nics: Any, **settings: Any) -> MachineSpec:
    return parse_spec({"image": "debian:12", "nics": list(nics), **settings})


def test_addresses_are_distinct_unicast_addresses() -> None:
    chosen = choose_mac_addresses([None, MAC, None])
    assert chosen[1] == MAC
    assert len(set(chosen)) == 3
    assert all(mac.startswith("52:54:00:") and len(mac) == 17 for mac in chosen)


@pytest.mark.parametrize(
    ("settings", "count"), [({}, 1), ({"uplink": False}, 0), ({"uplink": "isolated"}, 1)]
)
def test_the_short_way_is_one_card_or_none(settings: dict[str, Any], count: int) -> None:
    spec = parse_spec({"image": "debian:12", **settings})
    nics = resolve_nics(spec)
    assert len(nics) == count
    assert [(nic.place, nic.model, nic.announces) for nic in nics] == [(0, "virtio", False)] * count
    planned = plan_nics(spec, nics, "m", NoNetworks())
    assert [nic.id for nic in planned] == ["uplink"] * count


def test_cards_on_networks() -> None:
    spec = spec_with("uplink", {"network": "back", "mac": MAC}, "isolated,model=e1000", "front")
    nics = resolve_nics(spec)
    planned = plan_nics(spec, nics, "m", Networks())
    assert [(nic.id, nic.place, nic.model) for nic in planned] == [
        ("uplink", 0, "virtio"),
        ("nic1", 1, "virtio"),
        ("nic2", 2, "e1000"),
        ("nic3", 3, "virtio"),
    ]
    assert [nic.backend for nic in planned] == [uplink_backend(), "switch", "isolated", "switch"]
    assert planned[1].mac == MAC
    assert planned[1].port == SwitchPort("/run/back/m-nic1")


def test_a_first_card_on_a_network() -> None:
    spec = spec_with("back")
    planned = plan_nics(spec, resolve_nics(spec), "m", Networks())
    assert [(nic.id, nic.place, nic.backend) for nic in planned] == [("nic0", 0, "switch")]
    assert spec.uplink is False


def test_a_network_that_does_not_exist_is_refused() -> None:
    spec = spec_with("uplink", "bakc")
    with pytest.raises(InvalidSpec, match=r"^nics\[1\].network: no network 'bakc'") as refused:
        check_networks(spec, Networks())
    assert refused.value.hint == "did you mean 'back'?"
    with pytest.raises(NotFound, match="on 'bakc', and there is no such network"):
        plan_nics(spec, resolve_nics(spec), "m", NoNetworks())
    check_networks(spec_with("uplink", "back", "isolated"), Networks())


def test_a_fork_gets_new_addresses() -> None:
    spec = spec_with({"network": "back", "mac": MAC}, "front")
    before = resolve_nics(spec)
    after = renew_mac_addresses(before, None)
    assert not {nic.mac for nic in before} & {nic.mac for nic in after}
    assert [nic.place for nic in after] == [0, 1]
    assert renew_mac_addresses(before, spec)[0].mac == MAC, "a run gets the address that its spec names"


def test_a_record_with_one_card_is_read() -> None:
    hardware = Hardware.model_validate({**OLD, "mac": MAC, "announces": False})
    assert hardware.nics == [Nic(mac=MAC)]
    assert Hardware.model_validate({**OLD, "mac": MAC}).announces, "cards of early versions announce"
    assert Hardware.model_validate({**OLD, "mac": None, "announces": False}).nics == []
    assert Hardware.model_validate_json(hardware.model_dump_json()) == hardware
    with pytest.raises(ValueError, match="nics"):
        Hardware.model_validate(OLD)


@pytest.mark.parametrize(("before", "macs"), [(MAC, [MAC]), (None, [])])
def test_a_record_with_one_address_before_is_read(before: str | None, macs: list[str]) -> None:
    record = {
        "id": "aaaaaaaaaaaa",
        "name": "web",
        "spec": {"image": "debian:12"},
        "image_digest": "d",
        "image_agent": True,
        "hardware": {**OLD, "mac": MAC},
        "created": "2026-01-01T00:00:00.000+00:00",
        "mac_before": before,
        "spare": True,
    }
    read = MachineRecord.model_validate(record)
    assert read.macs_before == macs
    assert read.standby
    assert not {"mac_before", "spare"} & read.model_dump().keys()

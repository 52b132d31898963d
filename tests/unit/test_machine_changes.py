"""The network cards of a machine whose file has changed."""

from __future__ import annotations

from typing import Any

from bough.hypervisor.changed_settings import changed_fields, match_cards
from bough.machines.record import MachineRecord, Nic, PortForward
from bough.spec import MachineSpec, parse_spec
from bough.spec.container import Container


def spec(*nics: Any) -> MachineSpec:
    return parse_spec({"image": "debian:12", "nics": list(nics)})


BEFORE = spec("uplink", "back", "front")
NICS = [Nic(mac=f"52:54:00:00:00:0{place}", place=place) for place in range(3)]


def match(*nics: Any) -> list[tuple[str, int]]:
    found = match_cards(BEFORE.network_cards, NICS, spec(*nics).network_cards)
    return [(nic.mac, nic.place) for nic in found]


def test_a_card_that_stays_keeps_its_place_and_address() -> None:
    assert match("uplink", "front") == [(NICS[0].mac, 0), (NICS[2].mac, 2)]
    assert match("uplink", "front", "back") == [(NICS[0].mac, 0), (NICS[2].mac, 2), (NICS[1].mac, 1)]


def test_a_new_card_gets_a_free_place() -> None:
    (first, new, last) = match("uplink", "other", "front")
    assert (first, last) == ((NICS[0].mac, 0), (NICS[2].mac, 2))
    assert new[1] == 1
    assert new[0] not in [nic.mac for nic in NICS]


def test_a_card_with_another_model_or_address_is_another_card() -> None:
    (card,) = match("back,model=e1000e")
    assert card[1] == 0
    (card,) = match("back,mac=52:54:00:aa:bb:cc")
    assert card == ("52:54:00:aa:bb:cc", 0)


def test_the_exposed_ports_of_a_container_image_are_added() -> None:
    container = Container(reference="x", digest="sha256:0", ports=("80/tcp", "443/tcp"))
    forwarded = PortForward(host_port=8443, guest_port=443)
    record = MachineRecord.model_construct(
        spec=parse_spec({"image": "x"}), container=container, ports=[forwarded]
    )
    wanted = parse_spec({"image": "x", "publish_exposed": True})
    fields = changed_fields(record, ["publish_exposed"], wanted)
    assert fields["ports"] == [forwarded, PortForward(host_port=0, guest_port=80)]
    assert fields["spec"].publish_exposed
    assert "ports" not in changed_fields(record, ["publish_exposed"], parse_spec({"image": "x"}))

"""A network cable that is pulled: the guest sees the carrier go, unlike with lost frames."""

from __future__ import annotations

from typing import Any

from bough.errors import Conflict, InvalidInput
from bough.machines.record import MachineRecord
from bough.qemu.qmp import Qmp
from bough.spec.nic import ISOLATED, UPLINK


def find_card(record: MachineRecord, network: str | None) -> tuple[str, str]:
    """Return QEMU's name of a card's device, and the network.

    Args:
        network: None: of the machine's only card on a network, or its only card.

    Raises:
        Conflict: the machine has no such card. InvalidInput: several cards are possible.
    """
    cards = list(zip(record.spec.network_cards, record.hardware.nics, strict=True))
    names = [card.network for card, _ in cards]
    if network is None:
        wanted = [name for name in dict.fromkeys(names) if name not in (UPLINK, ISOLATED)] or names
        if len(wanted) > 1:
            raise InvalidInput(
                f"which cable, {', '.join(wanted)}?", hint=f"--network {wanted[0]}", machine=record.name
            )
        network = wanted[0] if wanted else UPLINK
    for card, nic in cards:
        if card.network == network:
            is_first = nic.place == 0 and network in (UPLINK, ISOLATED)
            return f"{'uplink' if is_first else f'nic{nic.place}'}-device", network
    raise Conflict(
        f"machine '{record.name}' has no network card on '{network[:80]}'",
        hint=f"it has cards on {', '.join(names) or 'no network'}",
        machine=record.name,
    )


async def set_link(qmp: Qmp, device: str, *, up: bool) -> None:
    """Plug the cable of a card in or out. Raises QmpRefused, QmpLost."""
    arguments: dict[str, Any] = {"name": device, "up": up}
    await qmp.execute("set_link", **arguments)

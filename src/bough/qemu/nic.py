"""Network cards on the command line: a device, a PCI place, and a netdev backend.

The first card (place 0) gets the next free slot of the PCI bus. All versions of bough do so, because the
device state of a snapshot contains the slot. Each other card has its own PCI port at a fixed address. So no
card moves when another device is added or removed:

    PCI Express    place N: alone behind the root port at slot 0x1e, function N - 1
    PCI (i440fx)   place N: slot N of the bridge at slot 0x1e

QEMU gives the slots below 0x1e to all other devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bough.networks.switch_port import NIC_SOCKET, SWITCH_SOCKET
from bough.qemu.block import render_option
from bough.qemu.plan import NicPlan

_SLOT = "0x1e"
_BRIDGE = "nic-bridge"
_MODELS = {"virtio": "virtio-net-pci"}
#: Directory in the jail that holds the machine's ports at switches. Equal for all machines.
_PORTS = "/run/bough-ports"


def render_nics(
    nics: Sequence[NicPlan], *, machine_type: str, jailed: bool, descriptors: Mapping[str, int]
) -> list[str]:
    """Return the words for all cards, with their PCI ports.

    Args:
        jailed: QEMU sees the ports of switches at `port_directory`.
        descriptors: "uplink" is QEMU's socket to passt.
    """
    is_express = not machine_type.startswith("pc-i440fx")
    ports = max((nic.place for nic in nics), default=0)
    words = _pci_ports(ports, is_express=is_express)
    for nic in nics:
        words += ["-netdev", _backend(nic, jailed=jailed, descriptors=descriptors)]
        words += ["-device", _device(nic, _place(nic, is_express=is_express))]
    return words


def port_directory(nic: NicPlan, *, jailed: bool) -> str:
    """Return the directory of the card's port at a switch, as QEMU sees it. A path in the jail is short: the
    address of a socket holds 107 bytes.
    """
    if nic.port is None:
        raise ValueError(f"{nic.id} is at no switch")
    return f"{_PORTS}/{nic.id}" if jailed else nic.port.directory


def is_card_socket(path: str) -> bool:
    """Return whether a socket of a jailed QEMU belongs to a card at a switch, by the path in the jail."""
    directory, _, name = path.rpartition("/")
    parent, _, card = directory.rpartition("/")
    return (parent, name) == (_PORTS, NIC_SOCKET) and card != ""


def _pci_ports(count: int, *, is_express: bool) -> list[str]:
    """Return the ports of places 1 to `count`. A guest finds a function only if there is function 0."""
    if not count:
        return []
    if not is_express:
        return ["-device", f"pci-bridge,id={_BRIDGE},bus=pci.0,addr={_SLOT},chassis_nr=1,shpc=off"]
    words = []
    for number in range(1, count + 1):
        address = f"addr={_SLOT}.{number - 1},multifunction=on,chassis={number}"
        words += ["-device", f"pcie-root-port,id={_port(number)},bus=pcie.0,{address}"]
    return words


def _port(place: int) -> str:
    return f"nic{place}-port"


def _place(nic: NicPlan, *, is_express: bool) -> dict[str, str | int]:
    if nic.place == 0:
        return {}
    return {"bus": _port(nic.place)} if is_express else {"bus": _BRIDGE, "addr": nic.place}


def _device(nic: NicPlan, place: Mapping[str, str | int]) -> str:
    model = _MODELS.get(nic.model, nic.model)
    # romfile="": no network boot, and no ROM to load at each start.
    values: dict[str, str | int | None] = {
        "id": f"{nic.id}-device",
        "netdev": nic.id,
        "mac": nic.mac,
        "romfile": "",
        **place,
    }
    if nic.model == "virtio" and not nic.announces:  # the other models announce nothing
        values["guest_announce"] = "off"
    return render_option(model, values)


def _backend(nic: NicPlan, *, jailed: bool, descriptors: Mapping[str, int]) -> str:
    match nic.backend:
        case "passt":
            socket = descriptors["uplink"]
            return render_option("stream", {"id": nic.id, "addr.type": "fd", "addr.str": socket})
        case "user":
            return render_option("user", {"id": nic.id, "ipv6": False})
        case "isolated":
            return render_option("hubport", {"id": nic.id, "hubid": nic.place})
        case "switch":
            return _at_switch(nic, jailed=jailed)


def _at_switch(nic: NicPlan, *, jailed: bool) -> str:
    """Named sockets: QEMU continues when the switch ends and another one binds the same name."""
    directory = port_directory(nic, jailed=jailed)
    own = {"local.type": "unix", "local.path": f"{directory}/{NIC_SOCKET}"}
    switch = {"remote.type": "unix", "remote.path": f"{directory}/{SWITCH_SOCKET}"}
    return render_option("dgram", {"id": nic.id, **own, **switch})

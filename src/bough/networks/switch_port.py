"""A machine's port at the switch of a network: a directory with two named datagram sockets.

    QEMU binds nic.sock, and sends frames to switch.sock
    the switch binds switch.sock, and sends frames to nic.sock

QEMU sends each frame by name. So QEMU continues when the switch ends and another switch binds the name again;
frames in between are lost. Whoever can write to the directory of a port can send frames as its machine.
"""

from __future__ import annotations

from dataclasses import dataclass

NIC_SOCKET = "nic.sock"
SWITCH_SOCKET = "switch.sock"


@dataclass(frozen=True)
class SwitchPort:
    """The port of one network card.

    Attributes:
        directory: of the port alone. QEMU creates its own socket there.
    """

    directory: str

    @property
    def nic_socket(self) -> str:
        return f"{self.directory}/{NIC_SOCKET}"

    @property
    def switch_socket(self) -> str:
        return f"{self.directory}/{SWITCH_SOCKET}"

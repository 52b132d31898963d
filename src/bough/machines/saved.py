"""What a machine goes on from instead of booting: a snapshot's, a suspended machine's, a bundle's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bough.errors import MachineFailed
from bough.machines.rehearsal import Rehearsal
from bough.machines.video import put_back, split_devices
from bough.qemu.frozen.freeze import FrozenProcess
from bough.qemu.qmp import Qmp
from bough.qemu.ram import Template, open_memory

_LOAD_POLL_S = 0.002


@dataclass(frozen=True)
class SavedState:
    """`devices`: as in machines/video.py."""

    memory: Template
    devices: bytes
    #: Its memory is still being read: QEMU starts meanwhile, and waits for this before it looks at any.
    loading: asyncio.Future[None] | None = None
    #: A process that has taken it up already, where there is one.
    frozen: FrozenProcess | None = None
    #: It is taken up in order to make such a one.
    rehearsal: Rehearsal | None = None


async def take_up(qmp: Qmp, pid: int | None, saved: SavedState, *, announces: bool) -> None:
    """Into a QEMU that was started over its memory and waits; the vCPUs stand still afterwards.

    Args:
        announces: as in Hardware.

    Raises:
        MachineFailed: it is damaged, or does not fit.
        BoughError, OSError: QEMU refused it, or ended.
    """
    try:
        state, video = await asyncio.to_thread(split_devices, saved.devices)
    except ValueError as error:
        raise MachineFailed(f"the state of its devices is damaged: {error}") from error
    if saved.loading is not None:
        await asyncio.shield(saved.loading)
    # Nobody is on its link who would have to learn where it is now, and each announcement by the guest wakes
    # its kernel, its networkd and its resolved. To a card that has them make one, none would take the timer
    # away that QEMU's virtio_net_reset() stops without a look, when the guest reboots.
    await qmp.execute("migrate-set-parameters", **{"announce-rounds": int(announces)})
    with open_memory(state) as descriptor:
        await qmp.send_fd("devices", descriptor)
        await qmp.execute("migrate-incoming", uri="fd:devices")
    while (await qmp.query("query-status")).get("status") == "inmigrate":  # noqa: ASYNC110
        await asyncio.sleep(_LOAD_POLL_S)
    if video is not None:
        await put_back(qmp, pid, video)

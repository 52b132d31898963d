"""A saved state from which a machine continues: of a snapshot, a suspended machine or a bundle."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from bough.errors import MachineFailed
from bough.machines.video import put_back, split_devices
from bough.qemu.plan import Plan
from bough.qemu.process_start import Loader
from bough.qemu.qmp import Qmp
from bough.qemu.ram import Template, open_memory

_LOAD_POLL_S = 0.002


class ProcessImage(Loader, Protocol):
    """A captured QEMU process that has the state loaded (forks/process_image/image.py)."""

    def fits(self, plan: Plan) -> bool:
        """Return whether a machine with this plan may continue from the image."""
        ...

    def distrust(self, machine_id: str, why: str) -> None:
        """Stop the use of the image after an error."""
        ...


class Prewarm(Protocol):
    """A start without a user: to make a process image, or to try an image out. The guest has no network."""

    @property
    def is_urgent(self) -> bool:
        """Return whether a user waits for the image."""
        ...

    async def state_loaded(self, pid: int | None) -> None:
        """Called when QEMU has loaded the state and the vCPUs do not run yet. Raises BoughError."""
        ...


@dataclass(frozen=True)
class SavedState:
    """Memory and devices of a machine. The format of `devices` is in machines/video.py."""

    memory: Template
    devices: bytes
    #: Done when the memory is read. QEMU starts meanwhile, and waits before it uses the memory.
    loading: asyncio.Future[None] | None = None
    image: ProcessImage | None = None
    #: None: the start is for a user.
    prewarm: Prewarm | None = None
    #: Accelerator of the QEMU that saved the memory, and of the next QEMU; None: unknown.
    accelerator: str | None = None


async def load_state(qmp: Qmp, pid: int | None, saved: SavedState, *, announces: bool) -> None:
    """Load a saved state into a QEMU that was started over the state's memory. The vCPUs stay paused.

    Args:
        announces: as in Hardware.

    Raises:
        MachineFailed: the state is damaged or does not fit.
        BoughError, OSError: QEMU refused or ended.
    """
    try:
        state, video = await asyncio.to_thread(split_devices, saved.devices)
    except ValueError as error:
        raise MachineFailed(f"the state of its devices is damaged: {error}") from error
    if saved.loading is not None:
        await asyncio.shield(saved.loading)
    # No neighbour on the link needs an announcement of the machine's place. Each announcement by the guest
    # wakes its kernel, networkd and resolved. A card with announcements needs at least one: at 0 QEMU removes
    # the timer, and its virtio_net_reset() stops the timer unchecked when the guest reboots.
    await qmp.execute("migrate-set-parameters", **{"announce-rounds": int(announces)})
    with open_memory(state) as descriptor:
        await qmp.send_fd("devices", descriptor)
        await qmp.execute("migrate-incoming", uri="fd:devices")
    while (await qmp.query("query-status")).get("status") == "inmigrate":  # noqa: ASYNC110
        await asyncio.sleep(_LOAD_POLL_S)
    if video is not None:
        await put_back(qmp, pid, video)

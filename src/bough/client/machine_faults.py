"""The Python API's faults of a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bough.client.screen import VisibleGuest

if TYPE_CHECKING:
    from datetime import datetime

    from bough.client.fault import Fault
    from bough.contract.answers import FaultInfo


class BreakableGuest(VisibleGuest):
    """The faults of a machine.

    A lasting fault ends by `heal`, at the end of its `with` block, when this program ends, or when the
    machine's QEMU ends. A machine with a fault refuses snapshots and forks.

    Every call can raise these errors of bough.errors:
    - WrongState: the machine does not run.
    - InvalidInput: the arguments contradict each other.
    - Conflict: the machine has such a fault already.
    - AgentUnavailable, GuestRefused: a fault inside the guest could not be made.
    """

    # -- at once ------------------------------------------------------------------------------------

    def power_arm(self, *, for_s: float | None = None) -> Fault:
        """Make the machine ready for `power_cut(lose_unsynced=True)`: log all writes from now on.

        The log needs as much space as the guest writes. Raises NoSpace.
        """
        from bough.client.fault import Fault
        from bough.contract.faults import ArmPowerCut

        request = ArmPowerCut(machine=self._reference, for_s=for_s, held=True)
        return Fault(self._api, self._api.send_long(request))

    def power_cut(self, *, lose_unsynced: bool = False, seed: int | None = None) -> None:
        """Cut the power. The machine is stopped. Without `lose_unsynced`, no write of the guest is lost.

        Args:
            lose_unsynced: lose the writes that the guest has not flushed. The machine must be armed by
                `power_arm`, and is not armed afterwards.
            seed: chooses unflushed writes that stay, as on some disks; None: all are lost.

        Raises:
            Conflict: the machine is not armed.
        """
        from bough.contract.faults import StrikeMachine

        request = StrikeMachine(
            machine=self._reference, how="power-cut", lose_unsynced=lose_unsynced, seed=seed
        )
        self._api.send_long(request)

    def crash_qemu(self) -> None:
        """Kill QEMU. The machine is failed, and its restart policy applies."""
        self._strike("crash")

    def reset(self) -> None:
        """Press the reset button: the guest boots."""
        self._strike("reset")

    def panic(self) -> None:
        """Panic the guest's Linux. The machine fails shortly after, unless the guest reboots itself."""
        self._strike("panic")

    def _strike(self, how: Literal["crash", "reset", "panic"]) -> None:
        from bough.contract.faults import StrikeMachine

        self._api.send_long(StrikeMachine(machine=self._reference, how=how))

    def kill_service(self, unit: str, *, signal: str = "KILL") -> None:
        """Send a signal to all processes of a systemd unit. Raises GuestRefused: no such unit runs."""
        from bough.contract.faults import KillInGuest

        self._api.send_long(KillInGuest(machine=self._reference, unit=unit, signal=signal))

    def kill_process(self, name: str, *, signal: str = "KILL") -> None:
        """Send a signal to all processes of that name. Raises GuestRefused: no such process."""
        from bough.contract.faults import KillInGuest

        self._api.send_long(KillInGuest(machine=self._reference, process=name, signal=signal))

    # -- lasting ------------------------------------------------------------------------------------

    def unplug(self, network: str | None = None, *, for_s: float | None = None) -> Fault:
        """Pull the cable of a network card: the guest sees that the link is down.

        Args:
            network: the card's network, or "uplink"; None: the only card on a network.
        """
        from bough.client.fault import Fault
        from bough.contract.faults import PullCable

        request = PullCable(machine=self._reference, network=network, for_s=for_s, held=True)
        return Fault(self._api, self._api.send(request))

    def paused(self, *, for_s: float | None = None) -> Fault:
        """Pause the vCPUs until the fault ends."""
        from bough.client.fault import Fault
        from bough.contract.faults import AddPause

        request = AddPause(machine=self._reference, for_s=for_s, held=True)
        return Fault(self._api, self._api.send(request))

    def disk_fault(
        self,
        operation: Literal["read", "write", "flush"],
        *,
        disk: int = 0,
        error: str = "EIO",
        once: bool = False,
        rate: float | None = None,
        area: tuple[int, int] | None = None,
        for_s: float | None = None,
        seed: int | None = None,
    ) -> Fault:
        """Let requests to a disk fail. The guest sees an I/O error.

        Args:
            disk: 0 is the root disk.
            error: "ENOSPC" at a write pauses the machine until the fault ends, as a full disk of the host
                does.
            once: only the next request fails.
            rate: percentage of the blocks of 4 KiB that fail, chosen by the seed.
            area: first byte, and the byte behind the last one.
        """
        from bough.client.fault import Fault
        from bough.contract.faults import FailDisk

        request = FailDisk(
            machine=self._reference,
            operation=operation,
            disk=disk,
            error=error,
            once=once,
            rate=rate,
            start=None if area is None else area[0],
            end=None if area is None else area[1],
            for_s=for_s,
            seed=seed,
            held=True,
        )
        return Fault(self._api, self._api.send(request))

    def disk_throttle(
        self, *, rate: str | int = 0, iops: int = 0, disk: int = 0, for_s: float | None = None
    ) -> Fault:
        """Slow a disk down, reads and writes together.

        Args:
            rate: bytes per second, or a text like "1MiB".
            iops: requests per second.
        """
        from bough.client.fault import Fault
        from bough.contract.faults import ThrottleDisk
        from bough.units import parse_size

        request = ThrottleDisk(
            machine=self._reference,
            disk=disk,
            bytes_per_s=parse_size(rate),
            iops=iops,
            for_s=for_s,
            held=True,
        )
        return Fault(self._api, self._api.send(request))

    def disk_full(self, path: str = "/", *, for_s: float | None = None) -> Fault:
        """Use all free space of the file system of a directory in the guest."""
        return self._press(full=path, for_s=for_s)

    def cpu_pressure(self, loops: int = 0, *, for_s: float | None = None) -> Fault:
        """Run busy processes in the guest; 0: one for each vCPU."""
        return self._press(loops=loops, for_s=for_s)

    def memory_pressure(self, size: str | int, *, for_s: float | None = None) -> Fault:
        """Use memory of the guest. The guest's kernel may kill other processes.

        Args:
            size: bytes, or a text like "256MiB".
        """
        from bough.units import parse_size

        return self._press(memory_bytes=parse_size(size), for_s=for_s)

    def _press(
        self,
        *,
        loops: int | None = None,
        memory_bytes: int | None = None,
        full: str | None = None,
        for_s: float | None,
    ) -> Fault:
        from bough.client.fault import Fault
        from bough.contract.faults import AddPressure

        request = AddPressure(
            machine=self._reference,
            loops=loops,
            memory_bytes=memory_bytes,
            full=full,
            for_s=for_s,
            held=True,
        )
        return Fault(self._api, self._api.send_long(request))

    def clock_fault(
        self,
        *,
        jump: float = 0.0,
        to: datetime | None = None,
        drift: float = 0.0,
        for_s: float | None = None,
    ) -> Fault:
        """Set the guest's clock wrong, and stop the services that would set it right.

        Args:
            jump: seconds ahead of the right time; negative: behind.
            to: set the clock to this time, with a time zone, instead of `jump`.
            drift: parts per million by which the clock is too fast; negative: too slow; 100,000 at most.
        """
        from bough.client.fault import Fault
        from bough.contract.faults import SetClockWrong

        request = SetClockWrong(
            machine=self._reference,
            jump_s=jump,
            to=None if to is None else to.timestamp(),
            drift_ppm=drift,
            for_s=for_s,
            held=True,
        )
        return Fault(self._api, self._api.send_long(request))

    def heal(self) -> list[FaultInfo]:
        """End all faults that name this machine. Return them."""
        from bough.client.fault import read_faults
        from bough.contract.faults import HealFaults

        return read_faults(self._api.send_long(HealFaults(machine=self._reference)))

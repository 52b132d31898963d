"""The public Python API: synchronous, typed, over the service's socket.

import bough

hv = bough.connect()
with hv.run("debian:12", memory="512MiB") as vm:
    print(vm.exec("uname", "-a").stdout)
"""

TYPE_CHECKING = False  # typing takes longer to load than a command
if TYPE_CHECKING:
    from typing import Any

    from bough.client.copy import CopyResult as CopyResult
    from bough.client.hypervisor import Hypervisor as Hypervisor
    from bough.client.hypervisor import connect as connect
    from bough.client.info import Event as Event
    from bough.client.info import Failure as Failure
    from bough.client.info import ImageInfo as ImageInfo
    from bough.client.info import MachineInfo as MachineInfo
    from bough.client.info import NetworkInfo as NetworkInfo
    from bough.client.info import Nic as Nic
    from bough.client.info import Port as Port
    from bough.client.machine import Completed as Completed
    from bough.client.machine import Machine as Machine
    from bough.client.network import Network as Network
    from bough.client.process import ExitStatus as ExitStatus
    from bough.client.process import Process as Process
    from bough.client.snapshot import Fork as Fork
    from bough.client.snapshot import Snapshot as Snapshot
    from bough.client.tunnel import Tunnel as Tunnel

# Names are loaded at first use: each command of the command line needs only a few.
_HOME_OF = {
    "Completed": "machine",
    "CopyResult": "copy",
    "Event": "info",
    "ExitStatus": "process",
    "Failure": "info",
    "Fork": "snapshot",
    "Hypervisor": "hypervisor",
    "ImageInfo": "info",
    "Machine": "machine",
    "MachineInfo": "info",
    "Network": "network",
    "NetworkInfo": "info",
    "Nic": "info",
    "Port": "info",
    "Process": "process",
    "Snapshot": "snapshot",
    "SnapshotInfo": "info",
    "Tunnel": "tunnel",
    "connect": "hypervisor",
}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> "Any":
    if name in _HOME_OF:
        from importlib import import_module

        return getattr(import_module(f"bough.client.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'bough.client' has no attribute {name!r}")

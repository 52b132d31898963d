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
    from bough.client.fault import Fault as Fault
    from bough.client.guest import Completed as Completed
    from bough.client.hypervisor import Hypervisor as Hypervisor
    from bough.client.hypervisor import connect as connect
    from bough.client.machine import Fork as Fork
    from bough.client.machine import Machine as Machine
    from bough.client.machine import Snapshot as Snapshot
    from bough.client.network import Network as Network
    from bough.client.process import ExitStatus as ExitStatus
    from bough.client.process import Process as Process
    from bough.client.project import Project as Project
    from bough.client.tunnel import Tunnel as Tunnel
    from bough.contract.answers import Event as Event
    from bough.contract.answers import Failure as Failure
    from bough.contract.answers import FaultInfo as FaultInfo
    from bough.contract.answers import ImageInfo as ImageInfo
    from bough.contract.answers import MachineInfo as MachineInfo
    from bough.contract.answers import NetworkInfo as NetworkInfo
    from bough.contract.answers import Nic as Nic
    from bough.contract.answers import Port as Port
    from bough.contract.answers import ProjectInfo as ProjectInfo

# Names are loaded at first use: each command of the command line needs only a few.
_HOME_OF = {
    "Completed": "bough.client.guest",
    "CopyResult": "bough.client.copy",
    "Event": "bough.contract.answers",
    "ExitStatus": "bough.client.process",
    "Failure": "bough.contract.answers",
    "Fault": "bough.client.fault",
    "FaultInfo": "bough.contract.answers",
    "Fork": "bough.client.machine",
    "Hypervisor": "bough.client.hypervisor",
    "ImageInfo": "bough.contract.answers",
    "Machine": "bough.client.machine",
    "MachineInfo": "bough.contract.answers",
    "Network": "bough.client.network",
    "NetworkInfo": "bough.contract.answers",
    "Nic": "bough.contract.answers",
    "Port": "bough.contract.answers",
    "Process": "bough.client.process",
    "Project": "bough.client.project",
    "ProjectInfo": "bough.contract.answers",
    "Snapshot": "bough.client.machine",
    "SnapshotInfo": "bough.contract.answers",
    "Tunnel": "bough.client.tunnel",
    "connect": "bough.client.hypervisor",
}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> "Any":
    if name in _HOME_OF:
        from importlib import import_module

        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'bough.client' has no attribute {name!r}")

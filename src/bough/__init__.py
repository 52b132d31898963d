"""bough: a hypervisor for whole machines.

import bough

hv = bough.connect()
with hv.run("debian:12", memory="512MiB") as vm:
    print(vm.exec("uname", "-a").stdout)
"""

from bough.version import __version__ as __version__

TYPE_CHECKING = False  # typing is half of the modules loaded by `bough exec`
if TYPE_CHECKING:
    from typing import Any

    from bough.client import Hypervisor as Hypervisor
    from bough.client import Machine as Machine
    from bough.client import Snapshot as Snapshot
    from bough.client import connect as connect

__all__ = ["Hypervisor", "Machine", "Snapshot", "__version__", "connect"]


def __getattr__(name: str) -> "Any":
    # The client is imported at first use: `bough version` and the service do not need it.
    if name in ("Hypervisor", "Machine", "Snapshot", "connect"):
        from bough import client

        return getattr(client, name)
    raise AttributeError(f"module 'bough' has no attribute {name!r}")

"""The use cases. The one place that knows machines, images, QEMU and networks, and introduces
them to each other; everything above (the service) only carries calls here.

    base        the machines there are, who holds them, how they go
      making        a machine from an image
        images          build, import, delete
        branches        snapshot, restore, fork, export, import
          running           run, spares
    whole       all of it, with its beginning and its end
"""

from bough.hypervisor.whole import Hypervisor

__all__ = ["Hypervisor"]

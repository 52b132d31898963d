"""The use cases. No other package combines machines, images, snapshots and QEMU.

inventory, names, lifetimes, half_made      the machines of a home and what all use cases share
image_source, images                        images for machines; build, import, delete
creation, lifecycle                         create; start, stop, pause, suspend, rename
snapshot_keeper, snapshots                  take, delete, restore
fork_maker, forking, waiting_machines       one fork; the call `fork`; machines that are ready already
booted_snapshots, running                   `run` without a boot
preparation                                 standby machines, forks in advance, pre-warms
bundles, differences                        export, import; what differs between two systems
auditing, opening                           doctor --store; start and end of the service
"""

from bough.hypervisor.hypervisor import Hypervisor

__all__ = ["Hypervisor"]

"""Booted snapshots: `bough run` forks such a snapshot instead of booting an image.

The first run of an image on given hardware boots a machine without a user's settings. When the machine is up,
bough takes a snapshot with memory. Later runs fork this snapshot. Each fork has its own identity. A fork
whose spec asks for users, files or commands also has its own first boot.

A key identifies the right snapshot: a digest of all influences on the booted machine. After a change of QEMU,
accelerator or image a snapshot never fits again. The service removes such snapshots.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from typing import Any

from bough.forks.level import RULES, Level
from bough.images.store import ImageManifest
from bough.machines.disks.buses import has_unsaved_bus
from bough.machines.record import Hardware
from bough.snapshots.store import SnapshotManifest, SnapshotStore
from bough.spec import MachineSpec, NicSpec
from bough.spec.model import settings_by_boot
from bough.spec.nic import ISOLATED
from bough.spec.program import has_image_init

#: Increase this number when booted snapshots of this version differ from those of earlier versions.
_GENERATION = 2

#: Run in a booted guest: loads the programs that a fork's first command needs. The marks of the first boot
#: are removed, because each fork has its own first boot.
SETTLE_SCRIPT = """
rm -rf /var/lib/bough/first-boot /var/lib/bough/first-boot.done
for n in 1 2 3; do /bin/true; /bin/sh -c true; done
sync
"""
SETTLE_TIMEOUT_S = 120.0


def can_fork_booted(spec: MachineSpec, image: ImageManifest) -> bool:
    """Return whether a machine with this spec may continue from a booted snapshot instead of booting."""
    boots = (getattr(spec, name) not in (None, False) for name in settings_by_boot("always"))
    if any(boots) or has_unsaved_bus(spec, image):
        return False
    return bool(image.agent) and not image.cloud_init and spec.clock_offset_s is None


def is_neutral(spec: MachineSpec) -> bool:
    """Return whether any standby machine with the same hardware fits: the spec asks for nothing else."""
    asked = settings_by_boot("setup", "name", "host") - {"image", "accelerator"}
    plain = all(getattr(spec, name) == _default(name) for name in asked)
    return plain and _neutral_nics(spec) == spec.nics


def neutral(spec: MachineSpec, image: ImageManifest) -> MachineSpec:
    """Return the spec of the machine that is booted for all specs with the same key."""
    plain = {name: _default(name) for name in settings_by_boot("setup", "name", "host")}
    own = {"image": image.digest, "accelerator": spec.accelerator, "nics": _neutral_nics(spec)}
    if image.container is not None:
        # The program of the run may be no init, though the image's is one.
        own["init"] = "image" if has_image_init(image.container, spec) else "bough"
    return spec.model_copy(update={**plain, **own})


def _neutral_nics(spec: MachineSpec) -> tuple[NicSpec, ...]:
    """Return the cards without their own addresses, away from all networks between machines. A card's device
    state fits each network.
    """
    return tuple(
        card.model_copy(
            update={
                "mac": None,
                "ipv4": None,
                "aliases": (),
                "network": ISOLATED if card.network in spec.networks else card.network,
            }
        )
        for card in spec.nics
    )


def _left_out(image: ImageManifest) -> dict[str, Any]:
    """Return the settings on which the key does not depend. Snapshots of earlier versions know no `ipv4`, and
    no `init`.
    """
    names = dict.fromkeys(settings_by_boot("setup", "name", "host"), True)
    if image.container is None:
        names["init"] = True
    return {**names, "nics": {"__all__": {"ipv4"}}}


def _default(name: str) -> Any:
    return MachineSpec.model_fields[name].get_default(call_default_factory=True)


def booted_key(
    spec: MachineSpec,
    image: ImageManifest,
    hardware: Hardware,
    accelerator: str,
    qemu_version: Iterable[int],
    agent_disk: str | None = None,
) -> str:
    spec = neutral(spec, image)
    told = {
        "generation": _GENERATION,
        "image": image.digest,
        "spec": spec.model_dump(mode="json", exclude=_left_out(image)),
        "hardware": hardware.model_dump(
            mode="json",
            exclude={"uuid": True, "vmgenid": True, "uid": True, "nics": {"__all__": {"mac", "link"}}},
        ),
        "accelerator": accelerator,
        "qemu": list(qemu_version),
    }
    if agent_disk is not None:  # keys of earlier versions had no agent disk
        told["agent_disk"] = agent_disk
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def find_booted(store: SnapshotStore, key: str) -> SnapshotManifest | None:
    """Return the booted snapshot with this key, if any. Mark the snapshot as used."""
    for manifest in store.booted():
        if manifest.booted_key == key:
            os.utime(store.paths(manifest.id).manifest)
            return manifest
    return None


def stale_booted(store: SnapshotStore, images: Iterable[str]) -> list[SnapshotManifest]:
    """Return the booted snapshots to remove: without an image, unused for long, or too many."""
    known = set(images)
    kept = store.booted()
    used = {m.id: store.paths(m.id).manifest.stat().st_mtime for m in kept}
    kept.sort(key=lambda m: used[m.id], reverse=True)
    rule = RULES[Level.BOOTED]
    oldest = time.time() - (rule.kept_s or 0.0)
    return [
        m for n, m in enumerate(kept) if n >= rule.most or used[m.id] < oldest or m.image_digest not in known
    ]

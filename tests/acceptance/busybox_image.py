"""An image whose guest has nothing but a kernel, its modules and busybox: no systemd, no Python.

The disk is Debian's with another init. It boots like each disk of ours, so its machines can have booted
snapshots and process images.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from bough.guest.install import DISK_PLACE, STARTER_PATH, starter_file
from bough.images.disk import ROOT_OFFSET, digest_image
from bough.images.store import ImageManifest, ImageStore
from bough.paths import Home

LABEL = "busybox"
#: busybox's init: no /proc, /sys or /dev, which the starter has to mount.
_INITTAB = f"""\
::sysinit:/usr/bin/busybox mount -o remount,rw /dev/vda3 /
::sysinit:/usr/bin/busybox mount -t tmpfs -o mode=755 tmpfs /run
::respawn:{STARTER_PATH} stay
::shutdown:/usr/bin/busybox umount -a -r
"""
#: What must not be of use to the agent.
_REMOVED = ("python3", "systemctl", "bash", "tar")


def add_busybox_image(home: Home, base: str, agent_disk: Path, work: Path) -> ImageManifest:
    """Add the image to the store, made from the Debian `base`."""
    store = ImageStore(home)
    debian = store.resolve(base)
    made = home.incoming / "busybox"
    made.mkdir(mode=0o711)
    disk = made / "disk.raw"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", store.path(debian.digest), disk], check=True)
    disk.chmod(0o600)
    _change(disk, agent_disk, work)
    own = {"agent": "disk", "label": LABEL, "os": LABEL, "recipe": ""}
    told = {**json.loads(debian.model_dump_json()), **own}
    manifest = ImageManifest.model_validate({**told, "digest": digest_image(disk, told)})
    store.add(made, manifest, LABEL)
    return manifest


def _change(disk: Path, agent_disk: Path, work: Path) -> None:
    busybox, inittab, starter = work / "busybox", work / "inittab", work / "start"
    with busybox.open("wb") as stream:
        subprocess.run(["unsquashfs", "-cat", agent_disk, "bin/busybox"], check=True, stdout=stream)
    inittab.write_text(_INITTAB)
    starter.write_bytes(starter_file().content)
    commands = [
        *(f"write {busybox} /usr/bin/busybox", "sif /usr/bin/busybox mode 0100755"),
        *("rm /usr/sbin/init", "symlink /usr/sbin/init /usr/bin/busybox"),
        *(f"write {inittab} /etc/inittab", f"mkdir {DISK_PLACE}"),
        *(f"write {starter} {STARTER_PATH}", f"sif {STARTER_PATH} mode 0100755"),
        *(f"rm /usr/bin/{name}" for name in _REMOVED),
    ]
    script = work / "commands"
    script.write_text("\n".join(commands) + "\n")
    subprocess.run(
        ["debugfs", "-w", "-f", script, f"{disk}?offset={ROOT_OFFSET}"],
        check=True,
        capture_output=True,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )

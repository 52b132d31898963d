"""Files that guests were told are on disk, checked by reading the disk itself.

The files are on a second, small disk, which can be read after every moment.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bough.images.overlays import render_chain
from bough.machines.disks.creation import disk_chain
from bough.machines.record import MachineRecord
from bough.paths import Home

PLACE = "/data"
DISK: dict[str, object] = {"size": "64MiB", "serial": "data"}
_MOST_SHOWN = 5

#: path below PLACE -> content
Files = Mapping[str, str]

PREPARE = f"""
set -e
disk=/dev/vdb
mkfs.ext4 -q $disk
mkdir -p {PLACE}
echo "$disk {PLACE} ext4 defaults,nofail 0 0" >> /etc/fstab
mount {PLACE}
sync
"""
#: sh: when it ends, the file and its name are on disk.
WRITE = f'cd {PLACE} && cat > "$1" && sync "$1" && sync .'


def read_files(home: Home, machine_id: str, scratch: Path | None = None) -> dict[str, str]:
    """Return the files in PLACE of a machine that does not run.

    Raises:
        RuntimeError: the disk, or the file system on it, is damaged.
    """
    record = MachineRecord.read(home.machine(machine_id))
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        raw = Path(directory, "raw")
        chain = disk_chain(record.disks[1], home.machine(machine_id), home)
        _run("qemu-img", "check", "-q", render_chain(chain[:1]), fine=(0, 3))  # 3: clusters without a user
        _run("qemu-img", "convert", "-O", "raw", render_chain(chain), str(raw))
        return read_file_system(raw)


def read_file_system(raw: Path) -> dict[str, str]:
    """Return the files as a kernel would see them that mounts the disk now; the journal changes `raw`.

    Raises:
        RuntimeError: the damage exceeds what a journal repairs.
    """
    out = raw.parent / "files"
    out.mkdir()
    _run("e2fsck", "-fy", str(raw), fine=(0, 1))
    _run("debugfs", "-R", f"rdump / {out}", str(raw))
    return {
        str(path.relative_to(out)): path.read_bytes().decode(errors="replace")
        for path in out.rglob("*")
        if path.is_file()
    }


def compare(wanted: Files, found: Files, where: str) -> list[str]:
    lost = [name for name, content in wanted.items() if found.get(name) != content]
    told = ", ".join(
        f"{name} {'is different' if name in found else 'is gone'}" for name in lost[:_MOST_SHOWN]
    )
    return [f"{len(lost)} of {len(wanted)} files that were on the disk of {where}: {told}"] if lost else []


def _run(*command: str, fine: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode not in fine:
        raise RuntimeError(
            f"{' '.join(command)}: {done.returncode}: {done.stdout[-800:]}{done.stderr[-800:]}"
        )

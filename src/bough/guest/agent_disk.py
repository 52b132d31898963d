"""Operation grow_root: let the root file system use the whole disk."""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH112, PTH113, PTH116, PTH119, PTH120, PTH123, PTH208

from __future__ import annotations

import os

from bough.guest.agent_calls import OperationFailed, run_or_fail
from bough.guest.agent_users import has_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent_calls import Arguments, Tell

_SECTOR = 512
_EXT4_IOC_RESIZE_FS = 0x40086610
# A smaller rest is alignment and the second partition table at the end of the disk.
_WORTHWHILE = 4 * 1024 * 1024


def grow_root(_arguments: Arguments, tell: Tell) -> dict[str, object]:
    """Grow the root partition and file system to the end of the disk, if not grown yet.

    -> {"grown": bool, "size_bytes": of the root's partition}.
    """
    numbers, kind = _root_device()
    block = os.path.realpath(f"/sys/dev/block/{numbers}")
    if not os.path.isdir(block):
        return {"grown": False}  # no block device: nothing to grow
    device = "/dev/" + os.path.basename(block)
    grown = False
    if os.path.isfile(block + "/partition") and _slack(block) >= _WORTHWHILE:
        tell("growing the root partition", None, device)
        _grow_partition(block, device)
        grown = True
    size = _number(block + "/size") * _SECTOR
    if _file_system_size(device, kind) + _WORTHWHILE <= size:
        tell("growing the root file system", None, device)
        _grow_file_system(device, kind)
        grown = True
    return {"grown": grown, "size_bytes": size}


def _root_device() -> tuple[str, str]:
    """Return the root's device number and file system type: ("254:3", "ext4")."""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        for line in file.read(1 << 20).decode("utf-8", "surrogateescape").splitlines():
            fields, _, rest = line.partition(" - ")
            if fields.split()[4] == "/":
                kind, source = rest.split(" ")[:2]
                return _behind(source) or fields.split()[2], kind
    raise OperationFailed("no root file system is mounted")


def _behind(source: str) -> str | None:
    """Return the number of the device named in the mount table.

    The number reported by btrfs belongs to no device.
    """
    try:
        number = os.stat(source).st_rdev
    except OSError:
        return None  # "/dev/root", a name without a device node
    return f"{os.major(number)}:{os.minor(number)}" if number else None


def _number(path: str) -> int:
    with open(path, "rb", buffering=0) as file:
        return int(file.read(64))


def _slack(block: str) -> int:
    """Return the free bytes after the partition; 0 if another partition follows."""
    disk = os.path.dirname(block)
    start = _number(block + "/start")
    end = start + _number(block + "/size")
    for name in os.listdir(disk):
        path = f"{disk}/{name}"
        if os.path.isfile(path + "/partition") and _number(path + "/start") > start:
            return 0
    return (_number(disk + "/size") - end) * _SECTOR


def _grow_partition(block: str, device: str) -> None:
    disk = "/dev/" + os.path.basename(os.path.dirname(block))
    number = _number(block + "/partition")
    if not (has_program("sfdisk") and has_program("partx")):
        _grow_partition_alone(block, disk, number)
        return
    lines = []
    # sfdisk warns of the larger disk first.
    table = run_or_fail(["sfdisk", "--dump", disk]).partition("label:")
    for line in (table[1] + table[2]).splitlines():
        name, _, rest = line.partition(" : ")
        if line.startswith("last-lba"):
            continue  # limit of the smaller disk
        if name.strip() == device:
            # Without a size, the partition takes all free space.
            parts = [part for part in rest.split(",") if not part.strip().startswith("size=")]
            lines.append(f"{name} : {','.join(parts)}")
        else:
            lines.append(line)
    script = "\n".join(lines).encode() + b"\n"
    run_or_fail(["sfdisk", "--no-reread", "--no-tell-kernel", "--force", "--quiet", disk], script)
    # Only this partition, since the kernel does not forget partitions in use.
    run_or_fail(["partx", "--update", "--nr", str(number), disk])


def _grow_partition_alone(block: str, disk: str, number: int) -> None:
    from bough.guest.agent_partition import grow_table, tell_kernel

    fd = os.open(disk, os.O_RDWR)
    try:
        length = grow_table(fd, number, _number(os.path.dirname(block) + "/size"))
        tell_kernel(fd, number, _number(block + "/start"), length)
    finally:
        os.close(fd)


def _file_system_size(device: str, kind: str) -> int:
    """Return the size in bytes; 0 if the size is not easily seen: growing is then tried."""
    if not kind.startswith("ext"):
        info = os.statvfs("/")
        return info.f_blocks * info.f_frsize if kind == "btrfs" else 0
    with open(device, "rb", buffering=0) as file:
        file.seek(1024)
        block = file.read(1024)
    blocks = int.from_bytes(block[4:8], "little") | int.from_bytes(block[0x150:0x154], "little") << 32
    return blocks * (1024 << int.from_bytes(block[0x18:0x1C], "little"))


def _grow_file_system(device: str, kind: str) -> None:
    commands = {
        "xfs": ["xfs_growfs", "/"],
        "btrfs": ["btrfs", "filesystem", "resize", "max", "/"],
    }
    if kind.startswith("ext") and not has_program("resize2fs"):
        _grow_ext_by_kernel(device)
    elif kind.startswith("ext"):
        run_or_fail(["resize2fs", device])
    elif kind in commands:
        run_or_fail(commands[kind])


def _grow_ext_by_kernel(device: str) -> None:
    """Grow the mounted ext4 as resize2fs does: the kernel does all of it."""
    import fcntl

    size = _number(f"/sys/class/block/{os.path.basename(device)}/size") * _SECTOR
    fd = os.open("/", os.O_RDONLY)
    try:
        block = os.fstatvfs(fd).f_bsize
        fcntl.ioctl(fd, _EXT4_IOC_RESIZE_FS, (size // block).to_bytes(8, "little"))
    finally:
        os.close(fd)

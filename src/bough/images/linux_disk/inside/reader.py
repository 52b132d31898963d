"""Runs in a throw-away guest: reads and writes the files of a disk for the host (see disk_guest.py).

Requests and answers are JSON, each after its length in four bytes. A file system of the disk is mounted below
/volumes; a child of this program enters it (chroot) for each request, so no link leads out of it.
"""

# pathlib and contextlib cost an emulated guest time to load.
# ruff: noqa: PTH103, PTH108, PTH112, PTH115, PTH123, PTH208, PTH101, PTH102, PTH211

from __future__ import annotations

import base64
import json
import os
import stat
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Answer = dict[str, Any]
    Paths = list[str]
    Operation = Callable[..., Answer]

PORT = "org.bough.import"
KINDS = {stat.S_IFREG: "regular", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
MOST_TARGET = 1023


def find_port() -> str:
    """Return the device of the port."""
    base = "/sys/class/virtio-ports/"
    for name in os.listdir(base):
        with open(base + name + "/name") as file:
            if file.read().strip() == PORT:
                return "/dev/" + name
    raise OSError("no port")


def find_volume(number: int) -> str:
    """Return the device of a volume by the serial number of its disk."""
    for name in os.listdir("/sys/block"):
        try:
            with open("/sys/block/" + name + "/serial") as file:
                if file.read().strip() == f"volume{number}":
                    return "/dev/" + name
        except OSError:
            continue
    raise OSError("no volume")


def busybox(*words: str) -> int:
    return os.spawnv(os.P_WAIT, "/bin/busybox", ["busybox", *words])


def mount(number: int, kind: str, options: str) -> Answer:
    place = f"/volumes/{number}"
    os.makedirs(place, exist_ok=True)
    if busybox("mount", "-t", kind, "-o", options, find_volume(number), place):
        return {"error": "cannot be mounted"}
    names = os.listdir(place) if kind == "btrfs" else []
    # The root of a subvolume has inode 256 (btrfs, "BTRFS_FIRST_FREE_OBJECTID").
    found = [name for name in names if os.lstat(place + "/" + name).st_ino == 256]
    return {"subvolumes": sorted(found)[:100]}


def unmount(number: int) -> Answer:
    failed = busybox("umount", f"/volumes/{number}")
    os.sync()
    return {"error": "cannot be unmounted"} if failed else {}


def look(paths: Paths) -> Answer:
    found: Answer = {}
    for path in paths:
        try:
            info = os.lstat(path)
            target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else None
        except OSError:
            continue
        kind = KINDS.get(stat.S_IFMT(info.st_mode), "other")
        if target is not None and len(target) > MOST_TARGET:
            target = None
        found[path] = [kind, info.st_mode & 0o7777, info.st_size, info.st_ino, target]
    return found


def names(paths: Paths) -> Answer:
    found: Answer = {}
    for path in paths:
        try:
            found[path] = os.listdir(path or "/")[:20000]
        except OSError:
            continue
    return found


def read(path: str, offset: int, length: int) -> Answer:
    with open(path, "rb") as file:
        file.seek(offset)
        return {"data": base64.b64encode(file.read(length)).decode()}


def labels(paths: Paths) -> Answer:
    found: Answer = {}
    for path in paths:
        try:
            found[path] = os.getxattr(path, "security.selinux").rstrip(b"\0").decode()
        except (OSError, UnicodeDecodeError):
            continue
    return found


def write(change: Answer, label: str | None, time_s: int) -> Answer:
    """Create a file, a link or a directory. Directories above exist."""
    path = change["path"]
    if ("content" in change or "target" in change) and os.path.lexists(path):
        os.unlink(path)
    if "target" in change:
        os.symlink(change["target"], path)
    elif "content" in change:
        with open(path, "wb") as file:
            file.write(base64.b64decode(change["content"]))
        os.chmod(path, change["mode"])
    elif not os.path.isdir(path):
        os.mkdir(path)
        os.chmod(path, 0o755)
    os.chown(path, 0, 0, follow_symlinks=False)
    os.utime(path, (time_s, time_s), follow_symlinks=False)
    if label:
        os.setxattr(path, "security.selinux", label.encode(), follow_symlinks=False)
    return {}


OPERATIONS: dict[str, Operation] = {
    "look": look,
    "names": names,
    "read": read,
    "labels": labels,
    "write": write,
}
MOUNTING: dict[str, Operation] = {"mount": mount, "unmount": unmount}


def perform(request: Answer) -> Answer:
    """Return the answer to a request about the files of a volume."""
    try:
        os.chroot(request["root"])
        os.chdir("/")
        return OPERATIONS[request["do"]](*request["arguments"])
    except OSError as error:
        return {"error": error.strerror or "failed"}


def send(port: int, answer: Answer) -> None:
    data = json.dumps(answer, ensure_ascii=True).encode()
    data = struct.pack(">I", len(data)) + data
    while data:
        data = data[os.write(port, data[:32768]) :]


def receive(port: int, length: int) -> bytes:
    parts = b""
    while len(parts) < length:
        data = os.read(port, min(32768, length - len(parts)))
        if not data:
            os._exit(0)
        parts += data
    return parts


def main() -> None:
    os.makedirs("/volumes")
    port = os.open(find_port(), os.O_RDWR)
    send(port, {"ready": True})
    while True:
        (length,) = struct.unpack(">I", receive(port, 4))
        request = json.loads(receive(port, length))
        if request["do"] in MOUNTING:
            try:
                send(port, MOUNTING[request["do"]](*request["arguments"]))
            except OSError as error:
                send(port, {"error": error.strerror or str(error)})
            continue
        child = os.fork()
        if not child:
            send(port, perform(request))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            send(port, {"error": "failed"})


if __name__ == "__main__":
    main()

"""Attempts of a QEMU under a guest's control. The program runs in the jail in QEMU's place and reports its
results.

It uses the standard library only and is run as text. Argument: JSON {"read": [...], "write": [...],
"connect": [...], "port": number, "abstract": name, "kill": pid}. It prints JSON: {attempt: "refused: ..." or
"GOT: ..."}.
"""

import ctypes
import json
import os
import signal
import socket
import stat
import sys

asked = json.loads(sys.argv[1])
told = {}
libc = ctypes.CDLL(None, use_errno=True)


def attempt(name, work):
    try:
        got = work()
        told[name] = "GOT: " + repr(got)[:200]
    except OSError as error:
        told[name] = "refused: " + (error.strerror or str(error))


def call(name, number, *arguments):
    def work():
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return "done"

    attempt(name, work)


def read(path):
    if stat.S_ISDIR(os.stat(path).st_mode):
        return os.listdir(path)
    with open(path, "rb") as file:
        return file.read(16)


def write(path):
    with open(path, "ab") as file:
        return file.write(b"x")


def make(path):
    descriptor = os.open(path + "/made-by-a-guest", os.O_CREAT | os.O_WRONLY, 0o600)
    os.close(descriptor)
    return path


def connect(family, address):
    with socket.socket(family) as link:
        link.settimeout(3)
        link.connect(address)
        return "connected"


def raw():
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW)


def set_uid():
    os.setuid(0)
    return os.getuid()


for path in asked["read"]:
    attempt("read " + path, lambda path=path: read(path))
for path in asked["write"]:
    attempt("write " + path, lambda path=path: write(path))
for path in (
    "/",
    "/tmp",
    "/usr",
    "/bin",
    "/etc",
    "/dev",
    "/dev/shm",
    "/proc",
    "/proc/sys/kernel",
    "/var/tmp",
):
    attempt("make a file in " + path, lambda path=path: make(path))
for path in asked["connect"]:
    attempt("connect " + path, lambda path=path: connect(socket.AF_UNIX, path))
attempt("connect an abstract socket", lambda: connect(socket.AF_UNIX, "\0" + asked["abstract"]))
attempt("connect 127.0.0.1", lambda: connect(socket.AF_INET, ("127.0.0.1", asked["port"])))
attempt("connect ::1", lambda: connect(socket.AF_INET6, ("::1", asked["port"])))
attempt("connect 192.0.2.1", lambda: connect(socket.AF_INET, ("192.0.2.1", 80)))
attempt("a packet socket", raw)
attempt("kill a process of the host", lambda: os.kill(asked["kill"], 0))
attempt("its /proc", lambda: read("/proc/%d/environ" % asked["kill"]))
attempt("through the reaper's root", lambda: read("/proc/1/root/etc/passwd"))
attempt("become root", set_uid)
attempt("give a file away", lambda: os.chown(asked["write"][-1], 0, 0))
attempt("a device", lambda: os.mknod("/tmp/device", stat.S_IFBLK | 0o600, os.makedev(8, 0)))
attempt("a new root", lambda: os.chroot("/usr"))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, -10))
call("mount", 165, b"none", b"/tmp", b"tmpfs", 0, None)
call("umount", 166, b"/usr", 2)
call("read the kernel's log", 103, 3, b" " * 64, 64)
call("load a module", 313, 0, b"", 0)
call("open by handle", 304, -100, b"\0" * 64, 0)
call("trace the reaper", 101, 16, 1, 0, 0)
call("set the host's name", 170, b"taken", 5)
call("set the clock", 227, 0, b"\0" * 16)
call("join another's namespace", 308, 0, 0)
call("a namespace of its own", 272, 0x10000000)
call("a process in a user namespace", 56, 0x10000000 | 17, 0, 0, 0, 0)
call("read the reaper's memory", 310, 1, None, 0, None, 0, 0)
call("a descriptor of the reaper's", 438, 0, 0, 0)
call("bpf", 321, 0, None, 0)
call("perf", 298, None, 0, -1, -1, 0)
call("userfaultfd", 323, 1)
call("io_uring", 425, 8, b"\0" * 128)
call("keys", 250, 0, -3, 1)
call("the new mounts", 428, -100, b"/", 1)

report = {
    "attempts": told,
    "processes": sorted(name for name in os.listdir("/proc") if name.isdigit())
    if os.path.isdir("/proc")
    else [],
    "interfaces": [name for _, name in socket.if_nameindex()],
    "environment": sorted(os.environ),
    "root": sorted(os.listdir("/")),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))
    if os.path.isdir("/proc/self")
    else [],
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
}
signal.alarm(0)
print(json.dumps(report))

"""A Linux network stack as a machine on a network: a tap in a network namespace of its own, without a guest.

The program runs as root in namespaces that the test makes (unshare -n -m). Frames pass between the tap and a
switch's port. systemd-networkd configures the tap as it configures a card in a guest.

    python3 linux_stack.py PORT MAC NETWORK_FILE...

Each line of standard input is a command as a JSON array. The answer is a JSON array: status and output.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

NETWORKD = "/lib/systemd/systemd-networkd"
CARD = "eth0"
_TUNSETIFF = 0x400454CA
_TAP_WITHOUT_HEADER = 0x1002
_NETIF = Path("/run/systemd/netif")


def open_tap(mac: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH", CARD.encode(), _TAP_WITHOUT_HEADER))
    subprocess.run(["ip", "link", "set", CARD, "address", mac], check=True)
    return tap


def relay(tap: int, port: Path) -> None:
    os.chdir(port)
    nic = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    nic.bind("nic.sock")
    Path("nic.sock").chmod(0o666)

    def outward() -> None:
        while True:
            frame = os.read(tap, 1 << 17)
            with contextlib.suppress(OSError):  # no switch: frames are lost
                nic.sendto(frame, "switch.sock")

    def inward() -> None:
        while True:
            frame = nic.recv(1 << 17)
            with contextlib.suppress(OSError):  # the card is still down
                os.write(tap, frame)

    for carry in (outward, inward):
        threading.Thread(target=carry, daemon=True).start()


def start_networkd(files: list[str]) -> subprocess.Popen[bytes]:
    # A read-only /sys tells networkd that no udev is to be waited for.
    subprocess.run(["mount", "-t", "sysfs", "-o", "ro", "sysfs", "/sys"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    for name in ("links", "leases", "lldp"):
        (_NETIF / name).mkdir(parents=True)
    for path in (_NETIF, *_NETIF.iterdir()):
        shutil.chown(path, "systemd-network", "systemd-network")
    target = Path("/run/systemd/network")
    target.mkdir()
    for file in files:
        # networkd takes a tap for a virtual card.
        (target / Path(file).name).write_text(Path(file).read_text().replace("Kind=!*\n", ""))
    return subprocess.Popen([NETWORKD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    port, mac, *files = sys.argv[1:]
    tap = open_tap(mac)
    files = [str(Path(file).resolve()) for file in files]
    relay(tap, Path(port))
    networkd = start_networkd(files)
    for line in sys.stdin:
        done = subprocess.run(json.loads(line), capture_output=True, text=True, check=False)
        print(json.dumps([done.returncode, done.stdout + done.stderr]), flush=True)
    networkd.kill()
    networkd.wait()


if __name__ == "__main__":
    main()

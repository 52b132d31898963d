"""Find the agent's port, however early the agent starts."""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH112, PTH123, PTH208, SIM105

from __future__ import annotations

import os

_CLASS = "/sys/class/virtio-ports"
_NETLINK_KOBJECT_UEVENT = 15


def open_port(name: str) -> int:
    """Open the virtio-serial port `name`; sleep until the port exists.

    Looks in sysfs, since devtmpfs has the device long before udev makes the link.
    """
    import _socket

    port = _try_port(name)
    if port >= 0:
        tell_started()
        return port

    # The kernel's own event for a new device: no polling, and udev need not run.
    events = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_DGRAM, _NETLINK_KOBJECT_UEVENT)
    events.bind((0, 1))
    _load_driver()
    port = _try_port(name)
    tell_started()
    while port < 0:
        try:
            events.recv(8192)
        except OSError:
            pass  # more events than fit: look again
        port = _try_port(name)
    events.close()
    return port


def tell_started() -> None:
    """Tell systemd that the agent has started. The rest of the boot waits until then: the agent needs little
    time and then sleeps.
    """
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if address:
        import _socket as socket

        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0)
        try:
            sock.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            pass  # systemd sees that the agent runs
        sock.close()


def _try_port(name: str) -> int:
    try:
        for port in os.listdir(_CLASS):
            with open(f"{_CLASS}/{port}/name", "rb", buffering=0) as file:
                if file.read(256).strip() == name.encode():
                    return os.open("/dev/" + port, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        pass
    return -1


def _load_driver() -> None:
    if not os.path.isdir(_CLASS):
        try:
            pid = os.posix_spawn("/sbin/modprobe", ["modprobe", "-q", "virtio_console"], os.environ)
            os.waitpid(pid, 0)
        except (OSError, AttributeError):
            pass  # then udev loads the module


def prepare_process() -> None:
    """Apply settings that the unit cannot express for every version of systemd."""
    os.chdir("/")
    os.umask(0o022)

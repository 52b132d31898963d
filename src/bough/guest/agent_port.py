"""Find the agent's port, however early the agent starts.

The port is a virtio-serial port with a name. A machine whose kernel has no virtio-serial has the port as its
second serial port instead; bough gives a machine one of the two.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH110, PTH112, PTH123, PTH208, SIM105

from __future__ import annotations

import os

from bough.guest.agent_python import TOOLS

_CLASS = "/sys/class/virtio-ports"
_SERIAL = "ttyS1"
_MODPROBES = ("/sbin/modprobe", "/usr/sbin/modprobe", "/usr/bin/modprobe", TOOLS + "/modprobe")
_NETLINK_KOBJECT_UEVENT = 15


def open_port(name: str) -> int:
    """Open the virtio-serial port `name`, or the second serial port; sleep until one exists.

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
    if port < 0:
        port = _try_serial()
    tell_started()
    while port < 0:
        try:
            events.recv(8192)
        except OSError:
            pass  # more events than fit: look again
        port = _try_port(name)
        if port < 0:
            port = _try_serial()
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
                    _make_node("/dev/" + port, f"{_CLASS}/{port}/dev")
                    return os.open("/dev/" + port, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        pass
    return -1


def _try_serial() -> int:
    """Open the second serial port, if there is hardware behind its device."""
    import termios

    path = "/dev/" + _SERIAL
    try:
        # Type 0: the driver found no such port. The device exists all the same.
        with open(f"/sys/class/tty/{_SERIAL}/type", "rb", buffering=0) as file:
            if file.read(8).strip() in (b"", b"0"):
                return -1
        _make_node(path, f"/sys/class/tty/{_SERIAL}/dev")
        port = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return -1
    try:
        set_raw(port)
    except (OSError, termios.error):
        os.close(port)
        return -1
    return port


def set_raw(port: int) -> None:
    """Let all bytes pass unchanged, at the highest usual speed, and without a modem's control lines."""
    import termios

    attributes = termios.tcgetattr(port)
    attributes[:4] = [0, 0, termios.CS8 | termios.CREAD | termios.CLOCAL, 0]
    attributes[4] = attributes[5] = termios.B115200
    attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
    termios.tcsetattr(port, termios.TCSANOW, attributes)


def _make_node(path: str, number_file: str) -> None:
    """Make the device, in a guest whose /dev is no devtmpfs and has no udev yet."""
    if os.path.exists(path):
        return
    with open(number_file, "rb", buffering=0) as file:
        major, _, minor = file.read(32).partition(b":")
    os.mknod(path, 0o20600, os.makedev(int(major), int(minor)))


def _load_driver() -> None:
    if not os.path.isdir(_CLASS):
        for program in _MODPROBES:
            try:
                pid = os.posix_spawn(program, ["modprobe", "-q", "virtio_console"], os.environ)
            except (OSError, AttributeError):
                continue  # no such program; without any, udev loads the module
            os.waitpid(pid, 0)
            return


def prepare_process() -> None:
    """Apply settings that the unit cannot express for every version of systemd."""
    os.chdir("/")
    os.umask(0o022)

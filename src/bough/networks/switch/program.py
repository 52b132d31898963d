"""The process of a switch: loop and command line.

    python -I -S -c RUN DIRECTORIES --control-fd N --settings JSON [--uid UID] DIRECTORY

The process runs until the service ends the switch. The only timers are the end of a hold and frames that a
fault makes late: a network without traffic takes no processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys

from bough.networks.switch.control import Control, Ended
from bough.networks.switch.fabric import Fabric
from bough.networks.switch.settings import Settings

#: Start of the process name (proc(5), comm).
LABEL = "net-"
#: Program text for `python -c`: the first argument names the directories of modules.
RUN = (
    "import sys; sys.path[:0] = sys.argv.pop(1).split(':');"
    " from bough.networks.switch.program import main; main()"
)
_NO_NEW_PRIVILEGES = 38
#: Far more than the queues of all ports.
_MEMORY_BYTES = 1 << 30


def run(fabric: Fabric, control: Control, poll: select.epoll) -> None:
    """Carry frames and answer requests until the service ends the switch."""
    with contextlib.suppress(Ended):
        while True:
            for number, events in poll.poll(fabric.wait_s()):
                # An earlier event may have closed the descriptor: then no part owns the descriptor.
                act = fabric.owner_of(number, events) or control.owner_of(number, events)
                if act is not None:
                    act()
            fabric.deliver()
    control.close()
    fabric.close()


def main() -> None:
    given = _parse(sys.argv[1:])
    settings = Settings.from_dict(json.loads(given.settings))
    listener = socket.socket(fileno=given.control_fd)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:  # noqa: PTH123
        name.write(f"{LABEL}{settings.network}"[:15])
    os.chdir(given.directory)  # before: another user may not pass the directories above
    _give_up_rights(given.uid)
    # A terminal's signals are for the service. The close of the connection shows the end of the service.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    poll = select.epoll()
    fabric = Fabric(settings, poll)
    run(fabric, Control(listener, fabric, poll), poll)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--settings", required=True)
    parser.add_argument("--uid", type=int)
    parser.add_argument("directory")
    return parser.parse_args(words)


def _give_up_rights(uid: int | None) -> None:
    """Become that user, if given, never gain a right again, and use a bounded part of the host's memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)

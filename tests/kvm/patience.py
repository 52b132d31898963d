"""A client of a service that may take long to start: the outer machine is slow."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import bough
from bough.client.service import command_of
from bough.errors import DeadlineExceeded, ServiceUnavailable
from bough.home import find_home
from bough.paths import Home

TRIES = 6
#: For a boot that prints nothing. An outer machine that waits for processors counts this time as the guest's
#: work, so the service would see work without a sign of progress.
BOOT_S = 900.0
#: A client waits a minute for a service to start. A service inside the outer machine may need several.
_START_S = 1200.0


def connect() -> bough.Hypervisor:
    """Return a client. Starts the service, if none runs, and waits as long as the service lives."""
    home = Home.at(Path(find_home()))
    deadline = time.monotonic() + _START_S
    starting: subprocess.Popen[bytes] | None = None
    while True:
        try:
            return bough.connect(start=False)
        except (DeadlineExceeded, ServiceUnavailable):
            if time.monotonic() > deadline:
                raise
        if starting is None or starting.poll() is not None:
            with home.service_log.open("ab") as log:
                starting = subprocess.Popen(
                    command_of(home), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/",
                    start_new_session=True, env=dict(os.environ),
                )  # fmt: skip
        time.sleep(1)

"""The files that start the agent in an imported Linux. The only place that knows where they come from."""

from __future__ import annotations

from collections.abc import Sequence

from bough.guest.install import DISK_PLACE, starter_file
from bough.guest.start_files import start_files
from bough.images.linux_disk.changes import Change, NewDirectory


def starter_changes(init: str, inittab: bytes | None) -> Sequence[Change] | None:
    """Return the files for an init system; None for an unknown one.

    Args:
        inittab: content of the guest's /etc/inittab; None if missing.
    """
    found = start_files(init, inittab)
    if found is None:
        return None
    return [starter_file(), *found.files, *found.links, NewDirectory(DISK_PLACE)]

"""The shared directory: resolved once to its real path, and opened without following links afterwards.

A guest with write access to a directory may put links in it. A link must not lead the next start of any share
to another directory. So bough follows links only when a user names the path.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from bough.errors import Conflict, InvalidInput, NotFound
from bough.spec import MachineSpec, MountSpec


def resolve_mounts(spec: MachineSpec, hidden: Sequence[Path]) -> MachineSpec:
    """Return the spec with the real path of each source. Raises NotFound, InvalidInput."""
    return spec.model_copy(update={"mounts": tuple(resolve_mount(mount, hidden) for mount in spec.mounts)})


def resolve_mount(mount: MountSpec, hidden: Sequence[Path]) -> MountSpec:
    """Return the mount with the real path of its source, a readable directory.

    Args:
        hidden: directories of bough itself, which no guest may see.

    Raises:
        NotFound, InvalidInput
    """
    source = Path(os.path.realpath(mount.source))
    if not source.exists():
        raise NotFound(f"there is no directory {source} to share", kind="directory", name=str(source))
    if not source.is_dir():
        raise InvalidInput(
            f"{source} is not a directory; only directories can be shared",
            hint="share its parent directory, or copy it with `bough cp`",
        )
    if not os.access(source, os.R_OK | os.X_OK):
        raise InvalidInput(f"{source} cannot be read by the user that runs the service")
    for place in map(_real, hidden):
        if source.is_relative_to(place):
            raise InvalidInput(f"{source} belongs to bough itself and cannot be shared")
        if mount.writable and place.is_relative_to(source):
            raise InvalidInput(
                f"{source} cannot be shared for writing: it contains bough's own {place}",
                hint="share another directory, or share this one read-only",
            )
    return mount.model_copy(update={"source": str(source)})


def check_sources(mounts: Iterable[MountSpec], machine: str) -> None:
    """Check that all sources exist. Raises Conflict."""
    for mount in mounts:
        try:
            os.close(open_source(mount.source))
        except OSError as error:
            raise Conflict(
                f"machine '{machine}' shares {mount.source}, which is gone ({error.strerror})",
                hint=f"restore the directory, or: bough umount {machine} {mount.target}",
                machine=machine,
            ) from error


def open_source(path: str) -> int:
    """Open the directory with this real path (O_PATH). Raises OSError if any part of the path is a link."""
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in Path(path).parts[1:]:
        above = here
        try:
            here = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        finally:
            os.close(above)
    return here


def hidden_below(source: str, hidden: Sequence[Path]) -> list[str]:
    """Return the hidden paths below `source`, relative to `source`."""
    return [str(place.relative_to(source)) for place in map(_real, hidden) if place.is_relative_to(source)]


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))

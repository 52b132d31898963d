"""The directory that is shared: found once, by its real path, and opened from then on without any link.

A guest that may write to one directory may put links in it. None of them must lead the next start, of this
share or of another one below it, out of there; so a link is followed when a person names the path, not later.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from bough.errors import Conflict, InvalidInput, NotFound
from bough.spec import MachineSpec, MountSpec


def resolve_mounts(spec: MachineSpec, hidden: Sequence[Path]) -> MachineSpec:
    """With the real path of each source. Raises NotFound, InvalidInput."""
    return spec.model_copy(update={"mounts": tuple(resolve_mount(mount, hidden) for mount in spec.mounts)})


def resolve_mount(mount: MountSpec, hidden: Sequence[Path]) -> MountSpec:
    """Its source by its real path: a directory that we can read.

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
            f"{source} is no directory, and only directories are shared",
            hint="share the directory that it is in, or copy it with `bough cp`",
        )
    if not os.access(source, os.R_OK | os.X_OK):
        raise InvalidInput(f"{source} cannot be read by the user whose service this is")
    for place in map(_real, hidden):
        if source.is_relative_to(place):
            raise InvalidInput(f"{source} is bough's own, which no guest may see")
        if mount.writable and place.is_relative_to(source):
            raise InvalidInput(
                f"{source} is not shared for writing: bough's own {place} is in it",
                hint="share a directory beside that one, or this one read-only",
            )
    return mount.model_copy(update={"source": str(source)})


def check_sources(mounts: Iterable[MountSpec], machine: str) -> None:
    """Raises Conflict where one is gone."""
    for mount in mounts:
        try:
            os.close(open_source(mount.source))
        except OSError as error:
            raise Conflict(
                f"machine '{machine}' shares {mount.source}, which is gone ({error.strerror})",
                hint=f"put it back, or: bough umount {machine} {mount.target}",
                machine=machine,
            ) from error


def open_source(path: str) -> int:
    """A descriptor (O_PATH) of the directory of that real path. OSError where any part of it is a link."""
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in Path(path).parts[1:]:
        above = here
        try:
            here = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        finally:
            os.close(above)
    return here


def hidden_below(source: str, hidden: Sequence[Path]) -> list[str]:
    """What is below `source` and no guest may see, relative to it."""
    return [str(place.relative_to(source)) for place in map(_real, hidden) if place.is_relative_to(source)]


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))

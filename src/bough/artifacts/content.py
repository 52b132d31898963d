"""The content of a file with holes, as offsets and bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def read_data(path: Path, most_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of all data outside of holes, ascending, at most `most_bytes` at once."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, offset = os.fstat(descriptor).st_size, 0
        while offset < size:
            try:
                offset = os.lseek(descriptor, offset, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            end = os.lseek(descriptor, offset, os.SEEK_HOLE)
            while offset < end:
                data = os.pread(descriptor, min(most_bytes, end - offset), offset)
                if not data:
                    return
                yield offset, data
                offset += len(data)
    finally:
        os.close(descriptor)

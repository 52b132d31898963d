"""The entries of a layer's archive: tarfile, made as strict as the readers that wrote the image.

tarfile takes a damaged header for the end of the archive, keeps every entry in memory, and applies the
global header of PAX to all following entries; Docker and umoci do none of that.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import cast

from bough.images.oci.inside.failure import BAD_LAYER, Failure
from bough.images.oci.inside.layer_stream import LayerStream

_NANOSECONDS = 1_000_000_000
#: The kernel limits a time to what the file system can hold.
_MOST_SECONDS = 1 << 40
_TIME = re.compile(r"(-?)(\d{1,18})(?:\.(\d*))?")
_XATTR = "SCHILY.xattr."
_NO_ID = 0xFFFFFFFF


class Entry(tarfile.TarInfo):
    """A header that is either right or a failure."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Entry:  # the name is tarfile's own
        try:
            return super().fromtarfile(tarfile)
        except _EOF_HEADER:
            raise
        except _EMPTY_HEADER:
            raise _EOF_HEADER("end of file") from None  # an archive may lack the two blocks of zeros
        except _HEADER_ERROR as error:
            raise Failure(BAD_LAYER, f"the archive has a damaged header ({error})") from error

    def _proc_pax(self, archive: tarfile.TarFile) -> Entry:
        if self.type != tarfile.XGLTYPE:
            return super()._proc_pax(archive)  # type: ignore[misc, no-any-return]
        stream = archive.fileobj
        assert stream is not None
        length = self._block(self.size)  # type: ignore[attr-defined]
        if len(stream.read(length)) < length:
            raise Failure(BAD_LAYER, "the archive ends within a header")
        return self.fromtarfile(archive)

    @property
    def name_bytes(self) -> bytes:
        return _encode(self.name)

    @property
    def target_bytes(self) -> bytes:
        return _encode(self.linkname)

    @property
    def mtime_ns(self) -> int:
        """Nanoseconds since 1970, as exact as the header: tarfile's own is a float."""
        text = self.pax_headers.get("mtime")
        if text is None:
            return max(-_MOST_SECONDS, min(int(self.mtime), _MOST_SECONDS)) * _NANOSECONDS
        match = _TIME.fullmatch(text)
        if match is None:
            raise Failure(BAD_LAYER, "the header has no valid time", self.name_bytes)
        sign, seconds, rest = match.groups()
        time = int(seconds) * _NANOSECONDS + int(((rest or "") + "0" * 9)[:9])
        most = _MOST_SECONDS * _NANOSECONDS
        return min(time, most) * (-1 if sign else 1)

    @property
    def owner(self) -> tuple[int, int]:
        for number in (self.uid, self.gid):
            if not 0 <= number < _NO_ID:
                raise Failure(BAD_LAYER, f"{number} is no number of an owner", self.name_bytes)
        return self.uid, self.gid

    @property
    def permissions(self) -> int:
        return self.mode & 0o7777

    @property
    def pieces(self) -> Sequence[tuple[int, int]] | None:
        """The offset and length of each part of a sparse file that has content; None for other files."""
        return cast("Sequence[tuple[int, int]] | None", self.sparse)

    @property
    def xattrs(self) -> dict[str, bytes]:
        if not self.pax_headers:
            return {}
        return {
            name[len(_XATTR) :]: _encode(value)
            for name, value in self.pax_headers.items()
            if name.startswith(_XATTR)
        }


_HEADER_ERROR: type[Exception] = tarfile.HeaderError
_EOF_HEADER: type[Exception] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_EMPTY_HEADER: type[Exception] = tarfile.EmptyHeaderError  # type: ignore[attr-defined]


def read_entries(stream: LayerStream) -> Iterator[Entry]:
    """Return the entries. The content of each is next in `stream` until the next entry is asked for.

    Raises:
        Failure: the archive is damaged.
    """
    name = b""
    try:
        archive = tarfile.TarFile(
            fileobj=stream,  # type: ignore[arg-type]  # has what tarfile calls
            mode="r",
            tarinfo=Entry,
            encoding="utf-8",
            errors="surrogateescape",
        )
        while (entry := archive.next()) is not None:
            assert isinstance(entry, Entry)
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all of them
            name = entry.name_bytes
            yield entry
            stream.begin_header()
    except tarfile.TarError as error:
        raise Failure(BAD_LAYER, f"the archive is damaged ({error})", name) from error
    except RecursionError:
        raise Failure(BAD_LAYER, "an entry has too many headers") from None
    except MemoryError:
        raise Failure(BAD_LAYER, "the header of an entry needs too much memory") from None


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

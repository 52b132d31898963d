"""A file of user-data for cloud-init: plain text, or text compressed by gzip."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path

from bough.errors import InvalidInput

_MOST_BYTES = 16 * 1024 * 1024
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_user_data(path: Path) -> str:
    """Return the text, unpacked and without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        InvalidInput: the file is not text, is damaged, or is too large.
    """
    with path.open("rb") as stream:
        data = stream.read(_MOST_BYTES + 1)
    if data.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as unpacked:
                data = unpacked.read(_MOST_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidInput(f"the user-data in {path} is a damaged gzip file: {error}") from error
    if len(data) > _MOST_BYTES:
        raise InvalidInput(f"the user-data in {path} is larger than 16 MiB")
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"the user-data in {path} is not UTF-8 text (byte {error.start})",
            hint="encode binary parts of a MIME message as base64",
        ) from error

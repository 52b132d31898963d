"""Read the logical volumes of an LVM2 physical volume. Reads are bounded; broken metadata gives no volume.

The label is in one of the first four sectors. It leads to a metadata area, a ring buffer with a text: the
volume group's volumes, and the extents that each one consists of (lvm2, "lib/format_text/layout.h"). bough
gives a place on the disk to linear volumes in one piece. Others, such as mirrors, have no single place.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

SECTOR = 512
_MAGIC = b"\x20LVM2\x20x[5A%r0N*>"
_MOST_TEXT = 1 << 20
_MOST_DEPTH = 8
_MOST_VOLUMES = 64
_MOST_SEGMENTS = 64
_NAME = re.compile(r"[A-Za-z0-9._+][A-Za-z0-9._+-]{0,127}")
_TOKEN = re.compile(r'\s+|#[^\n]*|"((?:[^"\\]|\\.)*)"|([A-Za-z0-9._+-]+)|([{}=\[\],])')


@dataclass(frozen=True)
class LogicalVolume:
    """A logical volume.

    Attributes:
        name: "group/volume".
        offset_bytes: place on the physical volume; None if the volume is not in one piece on it.
    """

    name: str
    offset_bytes: int | None
    size_bytes: int


def read_logical_volumes(stream: BinaryIO, offset_bytes: int, size_bytes: int) -> list[LogicalVolume]:
    """Return the logical volumes of the group that the physical volume at `offset_bytes` belongs to."""
    found = _read_label(stream, offset_bytes, size_bytes)
    if found is None:
        return []
    identity, text = found
    try:
        return list(_volumes(parse_metadata(text), identity))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return []


def _read_label(stream: BinaryIO, offset: int, size: int) -> tuple[str, str] | None:
    """Return the physical volume's UUID without dashes, and the text of the metadata."""
    stream.seek(offset)
    head = stream.read(min(4 * SECTOR, size))
    for place in range(0, len(head) - SECTOR + 1, SECTOR):
        label = head[place : place + SECTOR]
        if label[:8] == b"LABELONE" and label[24:32] == b"LVM2 001":
            (start,) = struct.unpack_from("<I", label, 20)
            if not 32 <= start <= SECTOR - 40:
                return None
            areas = _read_areas(label, start + 40)
            texts = (_read_text(stream, offset, size, *area) for area in areas)
            text = next((text for text in texts if text), None)
            identity = label[start : start + 32].decode("ascii", errors="replace")
            return (identity, text) if text else None
    return None


def _read_areas(label: bytes, place: int) -> list[tuple[int, int]]:
    """Return the metadata areas: the second of two lists that zeros end. The first has the data areas."""
    lists: list[list[tuple[int, int]]] = [[]]
    while place + 16 <= len(label) and len(lists) < 3:
        area, length = struct.unpack_from("<QQ", label, place)
        place += 16
        if area:
            lists[-1].append((area, length))
        else:
            lists.append([])
    return lists[1] if len(lists) > 1 else []


def _read_text(stream: BinaryIO, offset: int, size: int, area: int, length: int) -> str | None:
    if not SECTOR < length <= size - area:
        return None
    stream.seek(offset + area)
    header = stream.read(SECTOR)
    if len(header) < SECTOR or header[4:20] != _MAGIC:
        return None
    place, text_bytes = struct.unpack_from("<QQ", header, 40)
    if not (SECTOR <= place < length and 0 < text_bytes <= min(_MOST_TEXT, length - SECTOR)):
        return None
    first = min(text_bytes, length - place)
    stream.seek(offset + area + place)
    text = stream.read(first)
    if first < text_bytes:  # the buffer is a ring
        stream.seek(offset + area + SECTOR)
        text += stream.read(text_bytes - first)
    return text.rstrip(b"\0").decode("utf-8", errors="replace")


def parse_metadata(text: str) -> dict[str, Any]:
    """Parse the text: names with a value, a list or a section in braces.

    Raises:
        ValueError: the text is not of that form.
    """
    tokens = _tokens(text)
    section = _parse_section(tokens, 0)
    if next(tokens, None) is not None:
        raise ValueError("text after the end")
    return section


def _tokens(text: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError("an unknown character")
        place = match.end()
        quoted, word, sign = match.groups()
        if quoted is not None:
            yield f'"{quoted}'
        elif word or sign:
            yield word or sign


def _parse_section(tokens: Iterator[str], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if depth > _MOST_DEPTH:
        raise ValueError("nested too deeply")
    for name in tokens:
        if name == "}" and depth:
            return found
        sign = next(tokens, "")
        if sign == "{":
            found[name] = _parse_section(tokens, depth + 1)
        elif sign == "=":
            found[name] = _parse_value(tokens)
        else:
            raise ValueError("a name without a value")
    if depth:
        raise ValueError("an open brace")
    return found


def _parse_value(tokens: Iterator[str]) -> Any:
    word = next(tokens, "")
    if word != "[":
        return _scalar(word)
    values: list[str | int] = []
    for word in tokens:
        if word == "]":
            return values
        if word != ",":
            values.append(_scalar(word))
    raise ValueError("an open bracket")


def _scalar(word: str) -> str | int:
    if word.startswith('"'):
        return word[1:]
    return int(word) if re.fullmatch(r"-?[0-9]{1,18}", word) else word


def _volumes(metadata: dict[str, Any], identity: str) -> Iterator[LogicalVolume]:
    groups = [(name, value) for name, value in metadata.items() if isinstance(value, dict)]
    group, described = groups[0]
    extent = int(described["extent_size"]) * SECTOR
    starts = {
        name: int(volume["pe_start"]) * SECTOR
        for name, volume in described["physical_volumes"].items()
        if str(volume["id"]).replace("-", "") == identity
    }
    for name, volume in list(described.get("logical_volumes", {}).items())[:_MOST_VOLUMES]:
        if "VISIBLE" not in volume["status"] or not (_NAME.fullmatch(group) and _NAME.fullmatch(name)):
            continue
        count = int(volume["segment_count"])
        if not 0 < count <= _MOST_SEGMENTS or not 0 < extent < 1 << 40:
            continue
        segments = [volume[f"segment{number}"] for number in range(1, count + 1)]
        extents = sum(int(segment["extent_count"]) for segment in segments)
        if 0 < extents < 1 << 32:
            place = _place_of(segments, starts, extent)
            yield LogicalVolume(f"{group}/{name}", place, extents * extent)


def _place_of(segments: list[dict[str, Any]], starts: dict[str, int], extent: int) -> int | None:
    """Return the place of a volume whose segments are linear and follow each other; None for others."""
    place, end = None, None
    for segment in segments:
        stripes = segment.get("stripes")
        if segment["type"] != "striped" or int(segment["stripe_count"]) != 1 or not stripes:
            return None
        if stripes[0] not in starts or int(stripes[1]) < 0:
            return None
        here = starts[stripes[0]] + int(stripes[1]) * extent
        if end not in (None, here):
            return None
        place = here if place is None else place
        end = here + int(segment["extent_count"]) * extent
    return place

"""The installed packages of a system: dpkg, apk, rpm, pacman. The databases are untrusted."""

from __future__ import annotations

import re
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from bough.differences.tree import Tree

_MOST_BYTES = 128 << 20
_MOST_PACKAGES = 100_000
_DPKG = b"/var/lib/dpkg/status"
_APK = (b"/lib/apk/db/installed", b"/usr/lib/apk/db/installed")
_RPM = (b"/var/lib/rpm/", b"/usr/lib/sysimage/rpm/")
_PACMAN = b"/var/lib/pacman/local"
_PACMAN_NAME = re.compile(rb"(.+)-([^-]+-[^-]+)")
_FIELD = re.compile(r"^(Package|Status|Version|Architecture): (.*)$", re.MULTILINE)
_CONFFILE = re.compile(r"^ (/\S+) ([0-9a-f]{32})(?: obsolete)?$", re.MULTILINE)


@dataclass
class Packages:
    """The packages of a system.

    Attributes:
        manager: dpkg, apk, rpm or pacman; "": none was found.
        versions: name -> version. A second architecture of a package is "name:architecture".
        conffiles: of dpkg: name -> path -> MD5 of the package's own version of the file.
        note: why the packages cannot be read; "" if they can.
    """

    manager: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    conffiles: dict[str, dict[str, str]] = field(default_factory=dict)
    note: str = ""


def read_packages(tree: Tree) -> Packages:
    text = tree.read(_DPKG, _MOST_BYTES)
    if text is None or not text.strip():
        # Some images without a dpkg keep one file for each package.
        parts = [
            tree.read(b"/var/lib/dpkg/status.d/" + name) for name in tree.names(b"/var/lib/dpkg/status.d")
        ]
        text = b"\n\n".join(part for part in parts if part) or None
    if text is not None:
        return _read_dpkg(text.decode(errors="replace"))
    for path in _APK:
        if (text := tree.read(path, _MOST_BYTES)) is not None:
            return Packages("apk", _read_apk(text.decode(errors="replace")))
    if (found := _find_rpm(tree)) is not None:
        return found
    names = list(tree.names(_PACMAN))[:_MOST_PACKAGES]
    matches = [match for name in names if (match := _PACMAN_NAME.fullmatch(name))]
    versions = {match[1].decode(errors="replace"): match[2].decode(errors="replace") for match in matches}
    return Packages("pacman" if versions else "", versions)


def _read_dpkg(text: str) -> Packages:
    found = Packages("dpkg")
    for part in text.split("\n\n")[:_MOST_PACKAGES]:
        fields = dict(_FIELD.findall(part))
        name = fields.get("Package", "")
        # Packages of status.d have no status.
        if not name or not fields.get("Status", "installed").endswith("installed"):
            continue
        if fields.get("Status", "").endswith("not-installed"):
            continue
        key = name if name not in found.versions else f"{name}:{fields.get('Architecture', '')}"
        found.versions[key] = fields.get("Version", "")
        if "\nConffiles:" in part:
            found.conffiles[key] = dict(_CONFFILE.findall(part))
    return found


def _read_apk(text: str) -> dict[str, str]:
    versions = {}
    for part in text.split("\n\n")[:_MOST_PACKAGES]:
        fields = {line[:1]: line[2:] for line in part.splitlines() if line[1:2] == ":" and line[:1] in "PV"}
        if "P" in fields:
            versions[fields["P"]] = fields.get("V", "")
    return versions


def _find_rpm(tree: Tree) -> Packages | None:
    for directory in _RPM:
        names = tree.names(directory)
        data = tree.read(directory + b"rpmdb.sqlite", _MOST_BYTES)
        if data is not None:
            try:
                return Packages("rpm", dict(_read_rpm(data)))
            except (sqlite3.Error, ValueError, struct.error, MemoryError):
                return Packages("rpm", note="the database of rpm cannot be read")
        if b"Packages" in names or b"Packages.db" in names or b"rpmdb.sqlite" in names:
            return Packages("rpm", note="bough reads the databases of rpm 4.16 and later only")
    return None


def _read_rpm(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield name and version of each package in a database of rpm's kind "sqlite"."""
    database = sqlite3.connect(":memory:")
    try:
        # Bytes 18 and 19: 2 means a write-ahead log in another file, which a database in memory cannot have.
        database.deserialize(data[:18] + b"\1\1" + data[20:])
        for (header,) in database.execute("SELECT blob FROM Packages LIMIT ?", (_MOST_PACKAGES,)):
            tags = _read_header(header)
            epoch = f"{tags[1003]}:" if tags.get(1003) else ""
            if tags.get(1000) not in (None, "gpg-pubkey"):
                yield str(tags[1000]), f"{epoch}{tags.get(1001, '')}-{tags.get(1002, '')}"
    finally:
        database.close()


def _read_header(header: bytes) -> dict[int, str | int]:
    """Return the tags NAME, VERSION, RELEASE and EPOCH: 1000 to 1003."""
    count, length = struct.unpack_from(">II", header)
    store = 8 + 16 * count
    if store + length > len(header):
        raise ValueError("a header is cut off")
    tags: dict[int, str | int] = {}
    for at in range(8, store, 16):
        tag, kind, place, _ = struct.unpack_from(">IIII", header, at)
        if tag not in (1000, 1001, 1002, 1003):
            continue
        if kind == 6:
            tags[tag] = header[store + place :].partition(b"\0")[0][:255].decode(errors="replace")
        elif kind == 4:
            tags[tag] = struct.unpack_from(">I", header, store + place)[0]
    return tags


def compare_packages(before: Packages, after: Packages) -> dict[str, object]:
    """Return the packages that are added, removed, or of another version."""
    old, new = before.versions, after.versions
    return {
        "manager": after.manager or before.manager,
        "added": [{"name": name, "version": new[name]} for name in sorted(new.keys() - old.keys())],
        "removed": [{"name": name, "version": old[name]} for name in sorted(old.keys() - new.keys())],
        "changed": [
            {"name": name, "before": old[name], "after": new[name]}
            for name in sorted(old.keys() & new.keys())
            if old[name] != new[name]
        ],
    }


def changed_names(before: Packages, after: Packages) -> set[str]:
    """Return the names of packages that only one side has, or has in another version."""
    names = before.versions.keys() | after.versions.keys()
    return {name for name in names if before.versions.get(name) != after.versions.get(name)}


def files_of(tree: Tree, packages: Packages, names: set[str]) -> set[bytes]:
    """Return the paths that belong to some packages, as the databases of dpkg and apk list them."""
    if packages.manager == "dpkg":
        return _resolve(tree, _dpkg_files(tree, names))
    if packages.manager == "apk":
        return _resolve(tree, _apk_files(tree, names))
    return set()


def _dpkg_files(tree: Tree, names: set[str]) -> Iterator[bytes]:
    for file, node in tree.names(b"/var/lib/dpkg/info").items():
        name, dot, kind = file.decode(errors="replace").rpartition(".")
        if dot and (name in names or name.partition(":")[0] in names):
            yield b"/var/lib/dpkg/info/" + file
            if kind == "list" and node.inode.is_regular and node.inode.size <= _MOST_BYTES:
                yield from (tree.read(b"/var/lib/dpkg/info/" + file, _MOST_BYTES) or b"").splitlines()


def _apk_files(tree: Tree, names: set[str]) -> Iterator[bytes]:
    text = next((text for path in _APK if (text := tree.read(path, _MOST_BYTES)) is not None), b"")
    for part in text.split(b"\n\n"):
        lines = part.splitlines()
        if not any(line[:2] == b"P:" and line[2:].decode(errors="replace") in names for line in lines):
            continue
        directory = b""
        for line in lines:
            if line[:2] == b"F:":
                directory = b"/" + line[2:]
            elif line[:2] == b"R:":
                yield directory.rstrip(b"/") + b"/" + line[2:]


def _resolve(tree: Tree, paths: Iterator[bytes]) -> set[bytes]:
    """Return the paths as a walk finds them: /bin/x is /usr/bin/x where /bin is a link."""
    moved = {
        name: b"/" + node.files.link(node.inode).strip(b"/")
        for name, node in tree.names(b"/").items()
        if node.inode.is_link
    }
    found: set[bytes] = set()
    for path in paths:
        _, first, rest = [*path.split(b"/", 2), b"", b"", b""][:3]
        found.add(moved[first] + b"/" + rest if first in moved and rest else path)
        if len(found) > 2_000_000:
            break
    return found

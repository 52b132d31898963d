"""Archives that a hostile guest may send in a copy, without harm."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bough.client.copying.archive import MOST_HEADER_BYTES, Entry, Reader, render_end, render_entry
from bough.client.copying.ends import Receiver
from bough.client.copying.errors import raise_fault_of_guest, show
from bough.client.copying.report import MARK, CopyReport, Fault, parse
from bough.errors import BoughError, GuestRefused, NotFound, ProtocolError
from tests.unit.test_client_copy import MACHINE


def file(path: str, content: bytes = b"x") -> bytes:
    entry = Entry("file", path.encode())
    entry.size = len(content)
    return render_entry(entry) + content + bytes(-len(content) % 512)


def directory(path: str) -> bytes:
    return render_entry(Entry("directory", path.encode(), 0o755))


def link(path: str, target: str, kind: str = "link") -> bytes:
    entry = Entry(kind, path.encode())
    entry.link = target.encode()
    return render_entry(entry)


def receive(to: Path, *parts: bytes, names: tuple[bytes, ...] = (b"it",)) -> Receiver:
    receiver = Receiver(os.fsencode(to), list(names))
    receiver.receive(Reader(io.BytesIO(b"".join(parts) + render_end()).read))
    return receiver


@pytest.fixture
def to(tmp_path: Path) -> Path:
    (tmp_path / "to").mkdir()
    (tmp_path / "away").mkdir()
    return tmp_path / "to"


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [file("1")],
        [file("it")],
        [file("../it")],
        [file("/0")],
        [file(".")],
        [file("")],
        [file("0/it")],
        [file("0"), file("0/below")],
        [file("0"), file("1")],
        [file("0"), file("99999999999999999999")],
        [link("0", "/etc")],
        [link("0", "0", "again")],
        [directory("0"), link("0/a", "1/x", "again")],
        [directory("0"), file("0/x"), link("0/a", "0/x", "again")],  # not announced as a hard link
        [directory("0"), file("0/../../away/x")],
        [directory("0"), file("0/" + "a/" * 5000 + "x")],
    ],
)
def test_what_was_not_asked_for(to: Path, parts: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        receive(to, *parts)
    assert list((to.parent / "away").iterdir()) == []
    assert {path.name for path in to.iterdir()} <= {"it"}


def test_the_guest_does_not_choose_the_name(to: Path) -> None:
    receive(to, file("0", b"a"), file("1", b"b"), names=(b"one", b"two"))
    assert sorted((path.name, path.read_bytes()) for path in to.iterdir()) == [("one", b"a"), ("two", b"b")]


def test_nothing_goes_through_a_link_that_came_before(to: Path) -> None:
    receiver = receive(
        to, directory("0"), link("0/way", "../../away"), directory("0/way"), file("0/way/x"), file("0/last")
    )
    assert list((to.parent / "away").iterdir()) == []
    assert receiver.notes.failures == 1  # entries below it are not reported again
    assert (to / "it/last").exists()


def test_a_link_that_an_earlier_copy_left_is_not_followed_to_a_file(to: Path) -> None:
    (to.parent / "away/precious").write_text("mine")
    (to / "it").symlink_to("../away/precious")
    receive(to, file("0", b"theirs"))
    assert (to.parent / "away/precious").read_text() == "mine"


def altered(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    member = tarfile.TarInfo("0")
    member.size = 10
    change(member)
    return member.tobuf(tarfile.PAX_FORMAT) + b"x" * 512


def sparse(table: bytes, real: str, size: int = 512) -> bytes:
    def change(member: tarfile.TarInfo) -> None:
        member.size = size
        major = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        member.pax_headers = major | {"GNU.sparse.name": "0", "GNU.sparse.realsize": real}

    return altered(change)[:-512] + table.ljust(512, b"\0") + bytes(512)


def pax(records: bytes, size: int | None = None) -> bytes:
    head = tarfile.TarInfo("x")
    head.type, head.size = b"x", len(records) if size is None else size
    return head.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + file("0")


@pytest.mark.parametrize(
    "archive",
    [
        b"no archive at all".ljust(1024, b"!"),
        altered(lambda member: setattr(member, "type", b"S")),
        altered(lambda member: setattr(member, "type", b"L")),
        altered(lambda member: setattr(member, "size", 8**12)),
        altered(lambda member: setattr(member, "pax_headers", {"size": "-1"})),
        altered(lambda member: setattr(member, "pax_headers", {"size": "9" * 30})),
        altered(lambda member: setattr(member, "pax_headers", {"mtime": "never"})),
        altered(lambda member: setattr(member, "pax_headers", {"uid": str(2**32)})),
        sparse(b"1\n0\n600\n", "500"),
        sparse(b"1\n-1\n6\n", "500"),
        sparse(b"2\n8\n8\n0\n8\n", "500", 528),
        sparse(b"99999999\n0\n6\n", "500"),
        sparse(b"1" * 500, "500"),
        sparse(b"1\n0\n6\n", "9" * 19),
        pax(b"999 path=x\n"),
        pax(b"0 path=x\n"),
        pax(b"x path=x\n"),
        pax(b"10 path=x"),
        pax(b"", MOST_HEADER_BYTES + 1),
    ],
)
def test_archives_that_make_no_sense(to: Path, archive: bytes) -> None:
    with pytest.raises(ProtocolError):
        receive(to, archive)
    assert list(to.iterdir()) == []


def test_a_hole_of_an_exabyte_is_no_data(to: Path) -> None:
    receiver = receive(to, sparse(b"1\n0\n0\n", str(1 << 62)))
    assert receiver.notes.failures == 1  # larger than any file
    assert list(to.iterdir()) == []
    receive(to, sparse(b"1\n0\n0\n", str(1 << 40)))
    assert (to / "it").stat().st_blocks == 0


@pytest.mark.parametrize("length", [0, 300, 512, 600, 1024])
def test_archives_that_are_cut_off(to: Path, length: int) -> None:
    with pytest.raises(ProtocolError):
        Receiver(os.fsencode(to), [b"it"]).receive(Reader(io.BytesIO(file("0")[:length]).read))
    assert length >= 513 or list(to.iterdir()) == []


def test_labels_and_rights_are_not_taken(to: Path) -> None:
    entry = Entry("file", b"0", 0o6777)
    names = ("security.capability", "security.selinux", "trusted.overlay.opaque", "system.sockprotoname")
    entry.xattrs = {name.encode(): b"x" for name in names}
    receive(to, render_entry(entry))
    assert not set(os.listxattr(to / "it")) & set(names)
    assert (to / "it").stat().st_mode & 0o7777 == 0o777


# -- its report ---------------------------------------------------------------------------------------


def test_a_report_is_read_as_it_was_written() -> None:
    notes = CopyReport()
    notes.add("pipe", b"a\tb\n\xff")
    notes.fail(b"x\ty", "a link is there")
    notes.files, notes.bytes, notes.fault = 3, 5, Fault("missing", b"/\xff\t", "why")
    found, before = parse(b"warning\n" + notes.render())
    assert found is not None
    assert before == b"warning\n"
    assert vars(found) | {"fault": None} == vars(notes) | {"fault": None}
    assert found.fault is not None
    assert found.fault.args == ("missing", b"/\xff\t", "why")


@pytest.mark.parametrize(
    "report",
    [
        b"what\0",
        b"total\t1\0",
        b"total\t-1\t0\t0\0",
        b"total\t1\t1\t" + b"9" * 5000 + b"\0",
        b"kind\tx\tpipe\0",
        b"kind\t1\t\xff\0",
        b"name\tx\0",
        b"fault\tmissing\0",
        b"fault\t\xff\t\t\0",
    ],
)
def test_reports_that_make_no_sense(report: bytes) -> None:
    with pytest.raises(ProtocolError):
        raise_fault_of_guest(MACHINE, 0, MARK + report, "/x")


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (0, b"", GuestRefused),
        (1, b"Traceback: boom", GuestRefused),
        (75, b"", GuestRefused),
        (3, MARK + b"fault\tmissing\t\t/x\0", NotFound),
        (3, MARK + b"fault\tmade up\twhy\t/x\0", GuestRefused),
    ],
)
def test_ends_of_the_guest(status: int, said: bytes, error: type[BoughError]) -> None:
    with pytest.raises(error):
        raise_fault_of_guest(MACHINE, status, said, "/x")


def test_names_do_nothing_to_a_terminal() -> None:
    assert show(b"a\x1b[2Jb\n\xff\xe2\x80\xae") == r"a\x1b[2Jb\n\xff\u202e"
    assert show("plain ümlaut") == "plain ümlaut"

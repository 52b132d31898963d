import errno
import json
import os
from pathlib import Path

import pytest

from bough.errors import NoSpace
from bough.storage import no_space_is_told, read_tail, write_atomically, write_json


def test_a_write_replaces_the_whole_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "machine.json"
    write_json(target, {"state": "stopped"})
    with pytest.raises(TypeError):
        write_json(target, {"state": object()})
    assert json.loads(target.read_text()) == {"state": "stopped"}
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_full_file_system_is_told_and_leaves_the_old(tmp_path: Path) -> None:
    # /dev/full answers every write with ENOSPC, as a full disk does.
    with pytest.raises(NoSpace, match="machine.json") as told, no_space_is_told("machine.json", tmp_path):
        with open("/dev/full", "wb", buffering=0) as stream:  # noqa: PTH123
            stream.write(b"x")
    assert told.value.hint
    with pytest.raises(OSError) as other, no_space_is_told("it", tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not isinstance(other.value, NoSpace)


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "name", b"a directory is in the way")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read_tail(log) == ""
    log.write_bytes(b"x" * 10000 + b"\xff the end")
    assert read_tail(log, 9) == "\ufffd the end"[-9:]
    assert len(read_tail(log, 100)) == 100

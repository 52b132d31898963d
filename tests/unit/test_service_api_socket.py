"""The API's socket, bound again after its name is lost; and the place of sockets in earlier versions."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bough.home import SocketAddress
from bough.paths import Home
from bough.qemu.sockets import clear, listen
from bough.service.api_socket import ApiSocket, replace_runtime_link


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.create()
    home.lock.touch()
    return home


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client, SocketAddress(path) as address:
        client.connect(address)


@pytest.mark.parametrize("lost", ["api.sock", "", "replaced"])
def test_a_lost_name_is_made_again(home: Home, lost: str) -> None:
    door = ApiSocket(home)
    with door.bind():
        assert door.bind_again() is None
        if lost == "replaced":
            home.api_socket.rename(home.runtime / "other")
            home.api_socket.touch()
        else:
            shutil.rmtree(home.runtime) if not lost else home.api_socket.unlink()
        again = door.bind_again()
        assert again is not None
        with again:
            connect(home.api_socket)
            assert door.bind_again() is None
            assert home.runtime.stat().st_mode & 0o777 == 0o700
        door.remove()
        assert not home.api_socket.exists()


def test_where_it_cannot_be_made_again_that_is_logged_once(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    door = ApiSocket(home)
    with door.bind():
        shutil.rmtree(home.runtime)
        home.runtime.write_text("a file")
        assert [door.bind_again() for _ in range(3)] == [None] * 3
        assert len(caplog.records) == 1
        home.runtime.unlink()
        again = door.bind_again()
        assert again is not None
        again.close()


def test_a_home_that_is_gone_is_not_made_again(home: Home) -> None:
    door = ApiSocket(home)
    with door.bind():
        shutil.rmtree(home.root)
        assert door.bind_again() is None
        assert not home.root.exists()


@pytest.fixture
def earlier(home: Home, tmp_path: Path) -> Iterator[socket.socket]:
    """Make `run` a link, as earlier versions did; yield the socket of a running machine there."""
    old = tmp_path / "xdg" / "bough" / "0123"
    (old / "aaaaaaaaaaaa").mkdir(parents=True)
    home.runtime.rmdir()
    home.runtime.symlink_to(old)
    with listen(old / "aaaaaaaaaaaa" / "qmp.sock", backlog=5) as listener:
        yield listener


def test_machines_of_an_earlier_version_are_reached(home: Home, earlier: socket.socket) -> None:
    home.create()  # by a client, which leaves the work to the service
    assert home.runtime.is_symlink()
    old = home.runtime.readlink()
    for _ in range(2):
        replace_runtime_link(home)
        assert home.runtime.is_dir()
        assert not home.runtime.is_symlink()
        connect(home.machine("aaaaaaaaaaaa").qmp_socket)
    clear(home.machine("aaaaaaaaaaaa"))  # the service starts again
    assert not home.machine("aaaaaaaaaaaa").runtime.is_symlink()
    assert (old / "aaaaaaaaaaaa" / "qmp.sock").exists()


def test_an_interrupted_replacement_is_completed(home: Home, earlier: socket.socket) -> None:
    old = home.runtime.readlink()
    replace_runtime_link(home)
    home.runtime.rename(home.root / "run.new")  # killed before the last step
    replace_runtime_link(home)
    connect(home.machine("aaaaaaaaaaaa").qmp_socket)
    home.runtime.rename(home.root / "run.new")  # killed before the last step but one
    home.runtime.symlink_to(old)
    replace_runtime_link(home)
    connect(home.machine("aaaaaaaaaaaa").qmp_socket)


def test_an_earlier_directory_that_is_lost_does_no_harm(home: Home, tmp_path: Path) -> None:
    home.runtime.rmdir()
    home.runtime.symlink_to(tmp_path / "gone")
    home.create()
    replace_runtime_link(home)
    assert list(home.runtime.iterdir()) == []

import os
import socket
from pathlib import Path

import pytest

from bough.errors import HostLacks
from bough.home import SocketAddress
from bough.paths import Home, make_private_directory
from bough.qemu.sockets import listen


def test_two_homes_share_no_socket(tmp_path: Path) -> None:
    one, other = Home.at(tmp_path / "one"), Home.at(tmp_path / "other")
    assert one.api_socket != other.api_socket
    assert Home.at(tmp_path / "x" / ".." / "one") == one


@pytest.mark.parametrize("deep", ["", "deep/" * 40, "blank, comma: 100% ö/" * 8])
def test_a_socket_can_be_used_however_long_its_path_is(tmp_path: Path, deep: str) -> None:
    home = Home.at(tmp_path / deep / "home")
    home.create()
    with listen(home.api_socket) as listener, socket.socket(socket.AF_UNIX) as client:
        before = _open_descriptors()
        with SocketAddress(home.api_socket) as address:
            client.connect(address)
        assert _open_descriptors() == before
        listener.accept()[0].close()
    assert home.api_socket.stat().st_mode & 0o777 == 0o600


def _open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_where_no_socket_can_be_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(HostLacks, match=r"cannot listen at .*: No such file") as caught:
        listen(tmp_path / "nowhere" / "api.sock")
    assert "BOUGH_HOME" in (caught.value.hint or "")


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        home = Home.at(tmp_path / "home")
        home.create()
    finally:
        os.umask(before)
    for path in (home.root, home.images, home.machines, home.snapshots, home.incoming):
        assert path.stat().st_mode & 0o777 == 0o711
    assert home.runtime.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_somebody_else_prepared_is_refused(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(HostLacks, match="link"):
        make_private_directory(tmp_path / "link")
    real.chmod(0o777)
    with pytest.raises(HostLacks, match="only this user"):
        make_private_directory(real)


def test_private_directories_are_private(tmp_path: Path) -> None:
    make_private_directory(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    make_private_directory(tmp_path / "a")

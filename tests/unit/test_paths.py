import os
from pathlib import Path

import pytest

from bough.errors import HostLacks
from bough.paths import Home, make_private_directory


def test_two_homes_share_no_socket(tmp_path: Path) -> None:
    one, other = Home.at(tmp_path / "one"), Home.at(tmp_path / "other")
    assert one.api_socket != other.api_socket
    assert Home.at(tmp_path / "x" / ".." / "one") == one


def test_a_socket_path_fits_however_long_the_home_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/4294967294")
    home = Home.at(tmp_path / ("deep/" * 40) / "home")
    # sockaddr_un.sun_path holds 108 bytes with the NUL
    assert len(os.fsencode(home.machine("0123456789ab").console_socket)) <= 107


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

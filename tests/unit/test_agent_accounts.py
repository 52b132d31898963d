"""Users and groups of a guest, read and written without programs of the guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bough.guest import agent_accounts, agent_login, agent_python, agent_users
from bough.guest.agent_calls import OperationFailed
from bough.guest.agent_login import Identity

PASSWD = """\
root:x:0:0:root:/root:/bin/ash
broken line
web:x:1000:1001:Web,,,:/srv/web:
odd:x:notanumber:5::/:/bin/sh
"""
GROUP = "root:x:0:root\nweb:x:1001:\nwheel:x:10:root,web\naudio:x:18:webber\n"


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the /etc of a guest whose agent has its own C library."""
    etc = tmp_path / "etc"
    (etc / "skel").mkdir(parents=True)
    (etc / "passwd").write_text(PASSWD)
    (etc / "group").write_text(GROUP)
    (etc / "shadow").write_text("root:*:1:0:99999:7:::\n")
    (etc / "shadow").chmod(0o640)
    (etc / "skel/.profile").write_text("# profile\n")
    for module in (agent_accounts, agent_users):
        monkeypatch.setattr(module, "PASSWD", str(etc / "passwd"))
        monkeypatch.setattr(module, "GROUP", str(etc / "group"))
    for name in ("SHADOW", "GSHADOW"):
        monkeypatch.setattr(agent_users, name, str(etc / name.lower()))
    monkeypatch.setattr(agent_users, "HOMES", str(tmp_path / "home"))
    monkeypatch.setattr(agent_users, "SKELETON", str(etc / "skel"))
    monkeypatch.setattr(agent_users, "_LOCK", str(etc / ".pwd.lock"))
    monkeypatch.setattr(agent_users, "_PROGRAM_PLACES", ())
    monkeypatch.setattr(agent_python, "PRIVATE", True)
    monkeypatch.setattr(agent_login, "_users", {})
    monkeypatch.setattr(os, "chown", lambda *_: None)
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    return etc


def test_users_come_from_the_files(etc: Path) -> None:
    user = agent_accounts.find_user("web")
    assert user is not None
    assert (user.uid, user.gid, user.home, user.shell) == (1000, 1001, "/srv/web", "")
    assert agent_accounts.find_uid(1000).name == "web"  # type: ignore[union-attr]
    assert agent_accounts.find_user("odd") is None
    assert agent_accounts.find_user("nobody") is None
    assert agent_accounts.find_gid("wheel") == 10
    assert agent_accounts.find_group_name(18) == "audio"
    assert agent_accounts.groups_of("web", 1001) == [1001, 10]


def test_name_services_are_asked_by_the_guests_own_python(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_python, "PRIVATE", False)
    assert agent_accounts.find_user("nobody") is not None
    assert agent_accounts.find_user("no-such-user") is None
    assert agent_accounts.find_group_name(10**7) is None


def test_the_identity_of_a_command(etc: Path) -> None:
    identity = Identity("web")
    assert (identity.uid, identity.gid, identity.groups) == (1000, 1001, [1001, 10])
    assert Identity("web:wheel").gid == 10
    assert Identity("12345").uid == 12345
    with pytest.raises(OSError, match="no user 'nobody'"):
        Identity("nobody")
    with pytest.raises(OSError, match="no group 'none'"):
        Identity("web:none")
    assert Identity("12345").gid == 12345
    assert Identity("12345", as_image=True).groups == [0]
    assert Identity("web", as_image=True).groups == [1001, 10]
    assert Identity("web:wheel", as_image=True).groups == [10]
    assert Identity("web:5", as_image=True).groups == [5]
    environment = agent_login.login_environment(identity)
    assert (environment["HOME"], environment["SHELL"], environment["USER"]) == ("/srv/web", "/bin/sh", "web")


def test_root_needs_no_entry(etc: Path) -> None:
    (etc / "passwd").unlink()
    root = Identity("0")
    assert root.entry is not None
    assert (root.entry.name, root.entry.home, root.entry.shell) == ("root", "/root", "/bin/sh")
    (etc / "group").unlink()
    assert (Identity("root:root").uid, Identity("root:root").gid) == (0, 0)


def test_a_new_user_in_the_files(etc: Path) -> None:
    agent_users.make_user("dev", "", ["wheel", "new"])
    assert (etc / "passwd").read_text().startswith(PASSWD)
    home = etc.parent / "home/dev"
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    assert (etc / "passwd").read_text().splitlines()[-1] == f"dev:x:1001:1002::{home}:{shell}"
    assert (etc / "group").read_text() == GROUP.replace(
        "root,web", "root,web,dev"
    ) + "dev:x:1002:\nnew:x:1003:dev\n"
    name, password, *_ = (etc / "shadow").read_text().splitlines()[-1].split(":")
    assert (name, password) == ("dev", "*")
    assert (etc / "shadow").stat().st_mode & 0o777 == 0o640
    assert (home / ".profile").read_text() == "# profile\n"
    assert home.stat().st_mode & 0o777 == 0o700


def test_an_existing_user_joins_groups_once(etc: Path) -> None:
    for _ in range(2):
        agent_users.make_user("web", "/bin/sh", ["audio"])
    assert (etc / "passwd").read_text() == PASSWD
    assert "audio:x:18:webber,web\n" in (etc / "group").read_text()


def test_a_guest_without_shadow(etc: Path) -> None:
    (etc / "shadow").unlink()
    agent_users.make_user("dev", "/bin/zsh", [])
    assert (etc / "passwd").read_text().splitlines()[-1].split(":")[1] == "*"
    assert (etc / "passwd").read_text().endswith(":/bin/zsh\n")
    assert not (etc / "shadow").exists()


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "-x", "a/b"])
def test_a_bad_name_changes_nothing(etc: Path, name: str) -> None:
    with pytest.raises(OperationFailed, match="cannot be a name"):
        agent_users.make_user(name, "", [])
    assert (etc / "passwd").read_text() == PASSWD


def test_useradd_is_used_where_it_is(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(agent_users, "has_program", lambda name: name == "useradd")
    monkeypatch.setattr(agent_users, "run_or_fail", ran.append)
    agent_users.make_user("dev", "/bin/sh", ["wheel"])
    agent_users.make_user("web", "/bin/sh", ["wheel"])
    assert ran[1][0] == "useradd"
    assert ran[1][-1] == "dev"
    assert ran[3] == ["usermod", "--append", "--groups", "wheel", "web"]

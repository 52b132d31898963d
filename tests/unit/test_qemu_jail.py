"""The wrapper around QEMU, and the report about the jail."""

from __future__ import annotations

import json

import pytest

from bough.qemu.jail import (
    FIRST_UID,
    LAST_UID,
    Jail,
    Sight,
    machine_uid,
    render_jail,
    report_jail,
)

FULL = Jail(bwrap="/usr/bin/bwrap", setpriv="/usr/bin/setpriv", system_calls=True, groups=("/g",))
SIGHT = Sight("/usr/bin/qemu-system-x86_64", writable=("/h/machines/1/disks",), read_only=("/h/i/disk.raw",))
QEMU = ["qemu", "-x"]


def test_an_ordinary_user_gets_a_user_namespace_and_no_capability() -> None:
    argv = render_jail(FULL, SIGHT, QEMU)
    assert "--unshare-user" in argv
    assert "setpriv" not in " ".join(argv)
    assert argv[argv.index("--cap-drop") + 1] == "ALL"
    assert "--cap-add" not in argv
    assert argv[-3:] == ["--", *QEMU]


def test_root_gives_up_root_inside_and_has_no_user_namespace() -> None:
    argv = render_jail(FULL, SIGHT, QEMU, uid=FIRST_UID)
    assert "--unshare-user" not in argv
    inner = argv[argv.index("--") + 1 :]
    assert inner[0] == "/usr/bin/setpriv"
    expected = {
        f"--reuid={FIRST_UID}",
        f"--regid={FIRST_UID}",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--no-new-privs",
    }
    assert expected <= set(inner)
    assert inner[-2:] == QEMU


def test_namespaces_and_no_end_with_the_service() -> None:
    argv = render_jail(FULL, SIGHT, QEMU)
    for name in ("pid", "ipc", "uts", "net"):
        assert f"--unshare-{name}" in argv
    assert "--die-with-parent" not in argv
    assert "--new-session" in argv
    assert "--clearenv" in argv


def test_only_system_directories_and_what_was_named_are_mounted() -> None:
    argv = render_jail(FULL, SIGHT, QEMU)
    kinds = {"--ro-bind", "--bind", "--ro-bind-try", "--dev-bind"}
    mounts = {(word, argv[i + 1], argv[i + 2]) for i, word in enumerate(argv) if word in kinds}
    sources = {source for _, source, _ in mounts}
    assert ("--bind", "/h/machines/1/disks", "/h/machines/1/disks") in mounts
    assert ("--ro-bind", "/h/i/disk.raw", "/h/i/disk.raw") in mounts
    system = {
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib32",
        "/lib64",
        "/nix/store",
        "/gnu/store",
        "/etc/ld.so.cache",
        "/etc/localtime",
    }
    assert sources <= system | {"/h/machines/1/disks", "/h/i/disk.raw"}
    assert [kind for kind, source, _ in mounts if source in system and kind == "--bind"] == []


def test_directories_above_a_mount_can_be_passed_by_any_user() -> None:
    argv = " ".join(render_jail(FULL, SIGHT, QEMU, uid=FIRST_UID))
    for directory in ("/h", "/h/machines", "/h/machines/1", "/h/i"):
        assert f"--perms 0755 --dir {directory} " in argv
        assert argv.index(f"--dir {directory} ") < argv.index("--bind /h/machines/1/disks")


def test_kvm_only_where_it_is_used_and_network_only_where_it_is_needed() -> None:
    assert "/dev/kvm" not in render_jail(FULL, SIGHT, QEMU)
    argv = render_jail(FULL, Sight("/usr/bin/q", devices=("/dev/kvm",), network=True), QEMU)
    assert " --dev-bind /dev/kvm /dev/kvm " in " ".join(argv)
    assert "--unshare-net" not in argv


def test_a_qemu_that_is_not_the_distributions_brings_its_tree() -> None:
    argv = " ".join(render_jail(FULL, Sight("/opt/qemu/bin/qemu-system-x86_64"), QEMU))
    assert "--ro-bind-try /opt/qemu /opt/qemu" in argv


def test_without_bubblewrap_root_still_gives_up_root() -> None:
    argv = render_jail(Jail(setpriv="/usr/bin/setpriv"), SIGHT, QEMU, uid=FIRST_UID)
    assert argv[0] == "/usr/bin/setpriv"
    assert render_jail(Jail(), SIGHT, QEMU) == QEMU


def test_of_proc_only_its_own_descriptors_where_it_cannot_be_mounted() -> None:
    argv = render_jail(Jail(bwrap="/b", own_proc=False), SIGHT, QEMU)
    assert "--proc" not in argv
    assert [word for word in argv if word.startswith("/proc")] == ["/proc/self/fd", "/proc/self/fd"]
    # The ids belong to the process that bubblewrap becomes, not to a child of it.
    assert "--as-pid-1" in argv
    assert "--as-pid-1" not in render_jail(FULL, SIGHT, QEMU)


def test_uids_are_stable_and_apart() -> None:
    first = machine_uid("a")
    assert machine_uid("a") == first
    assert machine_uid("a", taken={first}) != first
    assert all(FIRST_UID <= machine_uid(str(number)) <= LAST_UID for number in range(200))


def test_report_names_each_missing_part_and_what_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert report_jail(FULL, uid=None).complete
    report = report_jail(Jail(refused=(("files", "bubblewrap (bwrap) is not installed"),)), uid=None)
    assert not report.complete
    missing = {part.name: part.detail for part in report.parts if not part.had}
    assert set(missing) == {"files", "processes", "network", "user", "system calls", "resources"}
    assert "can read every file" in missing["files"]
    assert "not installed" in missing["files"]


def test_report_tells_a_shared_network() -> None:
    part = next(part for part in report_jail(FULL, uid=1, network=True).parts if part.name == "network")
    assert not part.had
    assert "passt" in part.detail


def test_a_jail_survives_json() -> None:
    jail = Jail("/b", "/s", False, True, ("/g",), (("files", "no"),))
    assert Jail.from_dict(json.loads(json.dumps(jail.to_dict()))) == jail

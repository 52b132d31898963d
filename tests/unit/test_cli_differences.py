"""What `bough diff` prints."""

from __future__ import annotations

from typing import Any

from bough.cli.differences import render
from bough.contract.answers import SystemDifferences
from bough.hypervisor.live_values import parse_live_values

EMPTY: dict[str, Any] = {
    "before": {"kind": "image", "name": "debian:12", "title": "Debian 12"},
    "after": {"kind": "machine", "name": "web", "title": "Debian 12", "state": "running"},
}


def shown(brief: bool = False, **found: Any) -> list[str]:
    return list(render(SystemDifferences.from_dict({**EMPTY, **found}), brief=brief))


def test_nothing_differs() -> None:
    assert shown() == [
        "--- image debian:12 (Debian 12)",
        "+++ machine web (Debian 12, running)",
        "",
        "no differences",
    ]


def test_the_parts() -> None:
    diff = "--- /etc/hosts\n+++ /etc/hosts\n@@ -1 +1 @@\n-a\n+b"
    lines = shown(
        packages={
            "added": [{"name": "nginx", "version": "1"}],
            "changed": [{"name": "bash", "before": "1", "after": "2"}],
        },
        configuration=[
            {
                "path": "/etc/hosts",
                "change": "changed",
                "details": ["content", "mode 0644 -> 0600"],
                "diff": diff,
            },
            {
                "path": "/etc/shadow",
                "change": "changed",
                "details": ["content"],
                "withheld": "it holds secrets",
            },
        ],
        units=[{"name": "nginx.service", "before": "disabled", "after": "enabled"}],
        sysctls=[{"name": "vm.swappiness", "before": None, "after": "10"}],
        ports={"before": None, "after": [{"protocol": "tcp", "address": "::", "port": 80}]},
        files={"directories": [{"path": "/srv", "added": 2, "removed": 0, "changed": 1}], "of_packages": 7},
        notes=["after: x"],
    )
    assert lines[3:] == [
        *("packages:", "  + nginx 1", "  ~ bash 1 -> 2", "", "configuration:"),
        *("  ~ /etc/hosts (mode 0644 -> 0600)", "    @@ -1 +1 @@", "    -a", "    +b"),
        *("  ~ /etc/shadow (withheld: it holds secrets)", "", "services at boot:"),
        *("  nginx.service: disabled -> enabled", "", "kernel settings in files:"),
        *("  vm.swappiness: (not set) -> 10", "", "listening ports of the running machine:", "  tcp [::]:80"),
        *("", "other files:", "  /srv: 2 added, 1 changed", "  7 files of the packages above"),
        *("", "notes:", "  after: x"),
    ]


def test_many_links_are_one_line() -> None:
    links = [
        {"path": f"/etc/ssl/certs/{number}", "change": "added", "details": ["link to x"]}
        for number in range(20)
    ]
    assert shown(configuration=links)[4:] == ["  + 20 files in /etc/ssl/certs"]


def test_the_identity_is_one_line() -> None:
    entries = [
        {
            "path": "/etc/hostname",
            "change": "changed",
            "details": ["content"],
            "diff": "--- a\n+++ a\n-a\n+b",
        },
        {
            "path": "/etc/ssh/ssh_host_rsa_key",
            "change": "added",
            "details": [],
            "withheld": "it holds secrets",
        },
        {"path": "/etc/ssh/ssh_host_rsa_key.pub", "change": "added", "details": []},
    ]
    assert shown(configuration=entries)[3:] == [
        "identity, which each machine has for itself:",
        "  ~ /etc/hostname, ssh host keys",
    ]


def test_names_of_a_guest_are_harmless() -> None:
    files = {"directories": [{"path": "/srv/\x1b[2J\u202e", "added": 1, "removed": 0, "changed": 0}]}
    assert shown(files=files)[4:] == ["  /srv/: 1 added"]


def test_live_values() -> None:
    text = """6.1.0-1
= tcp
  sl  local_address rem_address   st
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   106        0 1
   1: 0F02000A:0016 0202000A:D2F0 01 00000000:00000000 02:000A 00000000     0        0 1
= tcp6
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 0
= udp
  10: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0
= udp6
= sysctl
vm.swappiness = 60
kernel.random.uuid = 1-2
net.ipv4.tcp_fastopen_key = 12-34
net.ipv4.ip_local_port_range = 32768\t60999
"""
    found = parse_live_values(text)
    assert found.kernel == "6.1.0-1"
    assert [(one["protocol"], one["address"], one["port"]) for one in found.ports] == [
        *(("udp", "0.0.0.0", 68), ("tcp", "::", 80), ("tcp", "127.0.0.1", 5432)),
    ]
    assert found.sysctls == {"vm.swappiness": "60", "net.ipv4.ip_local_port_range": "32768 60999"}

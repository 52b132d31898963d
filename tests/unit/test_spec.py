"""The spec: accepted values, their normal form, and the report of every problem."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bough.errors import BeyondHost, InvalidInput, InvalidSpec
from bough.spec import (
    HostLimits,
    MachineSpec,
    check_against_host,
    parse_name,
    parse_spec,
    spec_defaults,
    spec_schema,
)
from bough.units import GIB, MIB, TIB

KEY = "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(32)).decode()


def problems(data: Any, place: str = "") -> dict[str, tuple[str, str | None]]:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(data, place)
    told = {one["place"]: (one["message"], one["hint"]) for one in caught.value.problems}
    assert len(told) == len(caught.value.problems)
    for message, hint in told.values():
        assert "pydantic" not in f"{message}{hint}"
        assert "http" not in f"{message}{hint}"
        assert "Input should" not in message
    return told


def only(data: dict[str, Any]) -> tuple[str, str, str | None]:
    told = problems({"image": "debian:12"} | data)
    assert len(told) == 1, told
    ((place, (message, hint)),) = told.items()
    return place, message, hint


def spec(**data: Any) -> MachineSpec:
    return parse_spec({"image": "debian:12"} | data)


def test_least_spec_has_the_defaults() -> None:
    assert spec().to_dict() == spec_defaults() | {"image": "debian:12"}


def test_network_cards() -> None:
    cards = ["uplink", "back,model=e1000e", {"network": "front", "mac": "52-54-00-AA-bb-cc"}]
    found = spec(nics=cards)
    assert [card.network for card in found.network_cards] == ["uplink", "back", "front"]
    assert found.network_cards[2].mac == "52:54:00:aa:bb:cc"
    assert found.networks == ("back", "front")
    assert parse_spec(found.to_dict()) == found
    assert spec(nics=["back"]).uplink is False, "`uplink` tells whether a card is on it"
    assert [card.network for card in spec().network_cards] == ["uplink"]
    assert [card.network for card in spec(uplink="isolated").network_cards] == ["isolated"]
    assert spec(uplink=False).network_cards == ()


def test_everything_and_back() -> None:
    full = spec(
        arch="amd64",
        vcpus=4,
        memory="1.5GiB",
        disk="20G",
        cpu="Skylake-Client-v3",
        machine_type="pc-q35-7.2",
        firmware="uefi",
        kernel="/boot/vmlinuz",
        initrd="/boot/initrd.img",
        cmdline="root=/dev/vda1 quiet",
        disks=["10GiB", {"size": "1G", "serial": "scratch"}],
        uplink="isolated",
        limits={"memory": "2GiB", "cpu": "150%", "disk": "20MiB/s", "iops": 500, "console": "1MiB"},
        require_jail=True,
        clock="-7d",
        hostname="web",
        users=["bob", {"name": "eve", "ssh_keys": [KEY], "sudo": True, "groups": ["adm"]}],
        ssh_keys=[KEY],
        environment={"LANG": "C.UTF-8", "EMPTY": ""},
        files=[
            {"path": "/etc/motd", "content": "hello\n"},
            {"path": "/opt/x", "content_base64": "AAH/", "mode": "755", "owner": "bob:adm"},
        ],
        commands=["apt-get update"],
        accelerator="tcg",
        ports=["8080:80", "127.0.0.2:2222:22", "[::1]:53:53/tcp", "443", {"guest_port": 5432}],
    )
    assert full.arch == "x86_64"
    assert (full.memory, full.disk) == (1536 * MIB, 20 * GIB)
    assert full.clock_offset_s == -7 * 86400
    assert (full.limits.cpu, full.limits.disk, full.limits.iops) == (150, 20 * MIB, 500)
    assert full.files[1].data == b"\0\1\xff"
    assert full.files[1].mode_bits == 0o755
    assert [(one.host, one.host_port, one.guest_port) for one in full.ports] == [
        ("127.0.0.1", 8080, 80),
        ("127.0.0.2", 2222, 22),
        ("::1", 53, 53),
        ("127.0.0.1", 0, 443),
        ("127.0.0.1", 0, 5432),
    ]
    assert parse_spec(json.loads(json.dumps(full.to_dict()))) == full


def test_every_problem_at_once() -> None:
    told = problems(
        {
            "imge": "debian:12",
            "memory": "12 elephants",
            "disks": [{"sise": "1G"}],
            "initrd": "/boot/initrd.img",
            "ports": ["8080:80", "8080:81"],
        },
        place="machines.web",
    )
    assert told == {
        "machines.web.imge": ("no such setting", "did you mean 'image'?"),
        "machines.web.memory": ("expected a size like '512MiB' or '10GiB', got '12 elephants'", None),
        "machines.web.disks[0].sise": ("no such setting", "did you mean 'size'?"),
        "machines.web.initrd": (
            "has no effect without a kernel of the host",
            "set kernel, or remove this setting",
        ),
        "machines.web.ports[1]": ("this port of the host is already used by ports[0]", None),
    }


def test_one_problem_is_the_message_itself() -> None:
    with pytest.raises(InvalidSpec, match=r"^vcpus: expected 1 to 255 virtual CPUs, got 0$"):
        spec(vcpus=0)


@pytest.mark.parametrize(
    ("data", "place", "message", "hint"),
    [
        ({"ram": "1G"}, "ram", "no such setting", "'memory'"),
        ({"cpus": 2}, "cpus", "no such setting", "'vcpus'"),
        ({"Hostname": "x"}, "Hostname", "no such setting", "'hostname'"),
        ({"memory": 512}, "memory", "at least 64 MiB, got 512 B", "'512MiB'"),
        ({"memory": "63MiB"}, "memory", "at least 64 MiB", None),
        ({"memory": "17TiB"}, "memory", "at most 16 TiB", None),
        ({"memory": None}, "memory", "got None", None),
        ({"disk": "65TiB"}, "disk", "at most 64 TiB", None),
        ({"disk": -1}, "disk", "negative", None),
        ({"disk": "9" * 31}, "disk", "at most 64 TiB", None),
        ({"vcpus": 256}, "vcpus", "1 to 255", None),
        ({"vcpus": True}, "vcpus", "whole number", None),
        ({"vcpus": "2"}, "vcpus", "whole number", None),
        ({"uplink": "yes"}, "uplink", "expected true, false or 'isolated', got 'yes'", "did you mean true?"),
        ({"nics": ["Back"]}, "nics[0].network", "expected a name of lower-case letters", "'back'"),
        ({"nics": ["uplink", "uplink"]}, "nics[1].network", "the uplink already has the card nics[0]", None),
        (
            {"nics": ["a,modle=e1000"]},
            "nics[0]",
            "expected a network card like 'back' or 'back,mac=",
            "'model'",
        ),
        ({"nics": ["a,model=ne2k"]}, "nics[0].model", "expected one of 'virtio', 'e1000'", None),
        ({"nics": ["a,mac=52:54"]}, "nics[0].mac", "a MAC address like '52:54:00:12:34:56'", None),
        ({"nics": ["a,ipv4=10.1.0"]}, "nics[0].ipv4", "expected an IPv4 address like '10.1.0.5'", None),
        ({"nics": [{"ipv4": "10.1.0.5"}]}, "nics[0].ipv4", "has an effect only on a network", "remove"),
        (
            {"nics": ["a,ipv4=10.1.0.5", "b,ipv4=10.1.0.5"]},
            "nics[1]",
            "this address is already used by nics[0]",
            None,
        ),
        ({"nics": ["a,mac=53:54:00:12:34:56"]}, "nics[0].mac", "is a group address", "'52:54:00:12:34:56'"),
        (
            {"nics": ["a,mac=52:54:00:12:34:56", {"network": "b", "mac": "52-54-00-12-34-56"}]},
            "nics[1]",
            "this MAC address is already used by nics[0]",
            None,
        ),
        ({"nics": ["back"] * 9}, "nics", "expected at most 8 entries, got 9", None),
        ({"nics": ["back"], "uplink": True}, "uplink", "contradicts nics, of which none is", "remove this"),
        ({"nics": ["uplink"], "uplink": False}, "uplink", "contradicts nics, of which one is", "remove this"),
        ({"network": "back"}, "network", "no such setting", "did you mean 'nics'?"),
        ({"limits": {"cpu": "0%"}}, "limits.cpu", "expected 1% to 25500%", "100% is one whole processor"),
        ({"limits": {"cpu": "half"}}, "limits.cpu", "expected a percentage of one processor", None),
        ({"limits": {"disk": "fast"}}, "limits.disk", "expected an amount per second like '20MiB/s'", None),
        ({"limits": {"disk": 5}}, "limits.disk", "expected 4KiB/s to 1TiB/s", None),
        ({"limits": {"iops": 0}}, "limits.iops", "expected a number of operations per second", None),
        (
            {"limits": {"memory": "1GiB"}},
            "limits.memory",
            "less than the guest's 1 GiB and 256 MiB",
            "remove this setting to use the default",
        ),
        ({"limits": {"bandwidth": 1}}, "limits.bandwidth", "no such setting", "known: console"),
        ({"firmware": "efi"}, "firmware", "'auto', 'bios', 'uefi'", "'uefi'"),
        ({"accelerator": "hvf"}, "accelerator", "'auto', 'kvm', 'tcg'", None),
        ({"arch": "sparc"}, "arch", "'x86_64', 'aarch64', 'riscv64'", None),
        ({"image": "-oops"}, "image", "like 'debian:12'", None),
        ({"image": "a,b"}, "image", "like 'debian:12'", None),
        ({"cpu": "max,+avx"}, "cpu", "CPU model", None),
        ({"machine_type": "q35"}, "machine_type", "with its version", "upgrade of QEMU"),
        ({"machine_type": "pc-q35-7.2,accel=kvm"}, "machine_type", "with its version", None),
        ({"kernel": "vmlinuz"}, "kernel", "absolute path on the host", None),
        ({"kernel": "/k", "cmdline": "a\nb"}, "cmdline", "kernel command line", None),
        ({"cmdline": "quiet"}, "cmdline", "without a kernel", "set kernel"),
        ({"clock": "2h"}, "clock", "an offset like '+2h'", "'+2h'"),
        ({"clock": "+2parsecs"}, "clock", "an offset like '+2h'", None),
        ({"hostname": "My_Web"}, "hostname", "lower-case letters", "'my-web'"),
        ({"hostname": "a" * 64}, "hostname", "at most 63", None),
        ({"users": "bob"}, "users", "expected a list, got 'bob'", '["bob"]'),
        ({"users": ["Bob"]}, "users[0].name", "a user name", None),
        ({"users": ["root"]}, "users[0].name", "exists already", "ssh_keys"),
        ({"users": ["bob", {"name": "bob"}]}, "users[1]", "already used by users[0]", None),
        ({"users": [{"name": "bob", "shell": "bash"}]}, "users[0].shell", "absolute path", None),
        ({"ssh_keys": ["/root/.ssh/id.pub"]}, "ssh_keys[0]", "public ssh key", "content of the file"),
        ({"ssh_keys": [KEY[:40]]}, "ssh_keys[0]", "damaged or cut off", None),
        ({"ssh_keys": [KEY + "\nssh-rsa x"]}, "ssh_keys[0]", "on one line", None),
        ({"environment": {"A=B": "x"}}, 'environment["A=B"]', "a variable's name", None),
        ({"environment": {"A": 1}}, "environment.A", "expected text, got 1", '"1"'),
        ({"environment": {"A": "x\ny"}}, "environment.A", "one line", None),
        ({"environment": ["A=1"]}, "environment", "a table of names and values", None),
        ({"files": [{"path": "/a"}]}, "files[0]", "has no content", 'content = ""'),
        (
            {"files": [{"path": "/a", "source": "b"}]},
            "files[0].source",
            "only a client can read source",
            None,
        ),
        ({"files": [{"path": "/a/../b", "content": ""}]}, "files[0].path", "without '.'", None),
        ({"files": [{"path": "a", "content": ""}]}, "files[0].path", "absolute path", None),
        ({"files": [{"path": "/a/", "content": ""}]}, "files[0].path", "absolute path", None),
        ({"files": [{"path": "/a", "content": "", "mode": 644}]}, "files[0].mode", "octal", "quotes"),
        ({"files": [{"path": "/a", "content": "", "mode": "0999"}]}, "files[0].mode", "octal", None),
        ({"files": [{"path": "/a", "content_base64": "?"}]}, "files[0].content_base64", "base64", None),
        ({"commands": "reboot"}, "commands", "expected a list", '["reboot"]'),
        ({"commands": [" "]}, "commands[0]", "a shell command", None),
        ({"disks": [{"size": "1G", "serial": "a,b"}]}, "disks[0].serial", "at most 20 letters", None),
        ({"disks": [True]}, "disks[0]", "a table of settings, got true", None),
        ({"disks": ["1G"] * 17}, "disks", "at most 16 entries", None),
        ({"ports": ["80:0"]}, "ports[0].guest_port", "from 1 to 65535", None),
        ({"ports": ["::1:80:80"]}, "ports[0]", "like '8080:80'", "brackets"),
        ({"ports": ["53:53/udp"]}, "ports[0]", "only TCP", None),
        ({"ports": ["example.org:80:80"]}, "ports[0].host", "address of this host", None),
        ({"ports": ["localhost:80:80", "80:81"]}, "ports[1]", "already used by ports[0]", None),
    ],
)
def test_each_problem(data: dict[str, Any], place: str, message: str, hint: str | None) -> None:
    told_place, told_message, told_hint = only(data)
    assert told_place == place
    assert message in told_message
    if hint is None:
        assert told_hint is None or place in ("users[0].name", "ports[0]", "hostname", "files[0].source")
    else:
        assert hint in (told_hint or "")


def test_a_private_key_is_not_repeated() -> None:
    text = "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----"
    _, message, hint = only({"ssh_keys": [text]})
    assert "secret" not in message
    assert ".pub" in (hint or "")


def test_same_key_twice_counts_once() -> None:
    assert spec(ssh_keys=[KEY, KEY + "\n"]).ssh_keys == (KEY,)


def test_sizes_are_whole_mebibytes() -> None:
    assert spec(memory=100_000_000).memory == 96 * MIB
    assert spec(disks=[MIB + 1]).disks[0].size == 2 * MIB


@pytest.mark.parametrize("data", [None, [], "debian:12", 3])
def test_not_a_table(data: Any) -> None:
    assert "expected a table of settings" in str(problems(data))


def test_parsing_leaves_its_argument_alone() -> None:
    data = {"image": "debian:12", "ssh_keys": [KEY, KEY], "files": [{"path": "/a", "content": ""}]}
    before = json.dumps(data)
    parse_spec(data)
    assert json.dumps(data) == before


def test_many_problems_stay_readable() -> None:
    with pytest.raises(InvalidSpec) as caught:
        spec(**{f"setting{number}": 1 for number in range(1000)})
    assert len(caught.value.problems) == 51
    assert caught.value.problems[-1]["message"] == "and 950 more problems"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
SETTINGS = st.sampled_from([*MachineSpec.model_fields, "oops"])


# The first draw builds hypothesis' table of Unicode, which hypothesis would report as slow.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(SETTINGS, JSON, max_size=6))
def test_any_json_is_a_spec_or_is_told(data: dict[str, Any]) -> None:
    try:
        parsed = parse_spec(data)
    except InvalidSpec as error:
        json.dumps(error.details["problems"][0])
    else:
        assert parse_spec(parsed.to_dict()) == parsed


@pytest.mark.parametrize("name", ["a", "web-1", "0", "a" * 63])
def test_names(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "a_b", "a\n", "a" * 64, "ä", "../x", 3, None])
def test_no_names(name: Any) -> None:
    with pytest.raises(InvalidInput):
        parse_name(name)


HOST = HostLimits(vcpus=2, memory_bytes=4 * GIB, free_disk_bytes=100 * GIB)


def test_within_the_host() -> None:
    check_against_host(spec(vcpus=2, memory="4GiB", disk="50GiB", disks=["50GiB"]), HOST)


def test_beyond_the_host() -> None:
    wanted = spec(vcpus=3, memory="5GiB", disk="1TiB")
    with pytest.raises(BeyondHost) as caught:
        check_against_host(wanted, HOST)
    assert [one["place"] for one in caught.value.problems] == ["vcpus", "memory", "disk"]
    assert "--force" in (caught.value.hint or "")
    check_against_host(wanted, HOST, force=True)


def test_defaults_are_not_held_against_a_small_host() -> None:
    check_against_host(spec(), HostLimits(vcpus=1, memory_bytes=1 * TIB, free_disk_bytes=1 * TIB))


def test_schema_is_json_and_names_every_setting() -> None:
    schema = json.loads(json.dumps(spec_schema()))
    assert set(schema["properties"]) == set(MachineSpec.model_fields)
    assert schema["required"] == ["image"]
    assert {"type": "string"} in schema["properties"]["memory"]["anyOf"]

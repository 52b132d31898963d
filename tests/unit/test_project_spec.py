"""A project's data becomes a ProjectSpec, or all its problems are told."""

from __future__ import annotations

import contextlib
import itertools
import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.errors import InvalidInput, InvalidSpec
from bough.networks.switch import settings as switch_settings
from bough.spec.container import Container
from bough.spec.project.changes import compare_projects
from bough.spec.project.order import choose_roles, find_cycles, start_order, stop_order
from bough.spec.project.parse import parse_project
from bough.spec.project.render import render_config, to_data
from bough.spec.subnet import LEAST_MTU, MOST_MTU

IMAGE = {"image": "debian:12"}


def project(**machines: Any):
    return parse_project({"name": "shop", "machines": machines})


def problems(data: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as error:
        parse_project({"name": "shop", **data})
    return {one["place"]: one["message"] for one in error.value.problems}


def hints(data: dict[str, Any]) -> dict[str, str | None]:
    with pytest.raises(InvalidSpec) as error:
        parse_project({"name": "shop", **data})
    return {one["place"]: one["hint"] for one in error.value.problems}


def networks_of(spec: Any, role: str) -> list[str]:
    return [card.network for card in spec.machines[role].spec.nics]


# Machines and networks


def test_a_machine_has_all_settings_of_the_spec() -> None:
    spec = project(db={**IMAGE, "memory": "512MiB", "disks": ["1GiB"], "environment": {"A": "b"}})
    machine = spec.machines["db"]
    assert machine.spec.memory == 512 * 1024 * 1024
    assert machine.spec.environment == {"A": "b"}
    assert (machine.key, machine.depends_on, machine.healthcheck, machine.profiles) == ("db", {}, None, ())


def test_several_machines_without_networks_share_the_default_network() -> None:
    spec = project(db=IMAGE, web=IMAGE)
    assert list(spec.networks) == ["default"]
    assert networks_of(spec, "db") == ["uplink", "default"]


def test_a_machine_alone_has_no_network_of_its_own() -> None:
    spec = project(db=IMAGE)
    assert (spec.networks, spec.machines["db"].spec.nics) == ({}, ())
    assert list(project(db={**IMAGE, "scale": 2}).networks) == ["default"]


def test_networks_become_cards_behind_the_uplink() -> None:
    data = {
        "name": "shop",
        "networks": {"front": {}, "back": {"subnet": "10.1.0.0/24", "mtu": 9000}},
        "machines": {
            "web": {**IMAGE, "networks": ["front", "back"]},
            "db": {**IMAGE, "networks": {"back": {"aliases": ["primary"]}}, "uplink": False},
            "lone": {**IMAGE, "networks": []},
            "jail": {**IMAGE, "networks": ["back"], "uplink": "isolated"},
        },
    }
    spec = parse_project(data)
    assert networks_of(spec, "web") == ["uplink", "front", "back"]
    assert networks_of(spec, "db") == ["back"]
    assert spec.machines["db"].spec.nics[0].aliases == ("primary",)
    assert networks_of(spec, "lone") == []
    assert networks_of(spec, "jail") == ["isolated", "back"]
    assert spec.networks["back"].mtu == 9000


def test_unknown_names_are_told_with_the_nearest_name() -> None:
    data = {
        "networks": {"back": {}},
        "machines": {
            "db": {**IMAGE, "networks": ["bak"], "memry": "1GiB", "network": "back"},
            "web": {**IMAGE, "depends_on": ["bd"], "networks": {"back": {"alias": []}}},
        },
        "network": {},
    }
    assert hints(data) == {
        "network": "did you mean 'networks'?",
        "machines.db.networks[0]": "did you mean 'back'?",
        "machines.db.memry": "did you mean 'memory'?",
        "machines.db.network": "did you mean 'networks'?",
        "machines.web.depends_on[0]": "known: db",
        "machines.web.networks.back.alias": "did you mean 'aliases'?",
    }


def test_all_problems_of_all_machines_are_told_at_once() -> None:
    data = {
        "networks": {"a": {"subnet": "10.1.0.0/24"}, "b": {"subnet": "10.1.0.0/16", "mtu": 3}, "uplink": {}},
        "machines": {
            "db": {"image": "debian:12", "memory": 5, "scale": 0, "profiles": ["A B"]},
            "web": {"depends_on": {"db": "ready"}, "networks": ["uplink"]},
            "Big": 7,
        },
    }
    found = problems(data)
    assert set(found) == {
        "networks.b.subnet", "networks.b.mtu", "networks.uplink", "machines.db.memory", "machines.db.scale",
        "machines.db.profiles[0]", "machines.web.depends_on.db", "machines.web.image", "machines.Big",
        "machines.web.networks[0]",
    }  # fmt: skip


def test_a_project_needs_a_name_and_a_machine() -> None:
    with pytest.raises(InvalidSpec) as error:
        parse_project({})
    assert [one["place"] for one in error.value.problems] == ["name", "machines"]
    assert parse_project({"machines": {"db": IMAGE}}, name="shop").name == "shop"


def test_a_file_of_one_machine_is_a_project_of_one_machine() -> None:
    spec = parse_project({"name": "db", "image": "debian:12", "memory": "1GiB"}, name="shop")
    assert (spec.name, list(spec.machines)) == ("shop", ["db"])
    assert list(parse_project(IMAGE, name="shop").machines) == ["main"]


def test_settings_of_a_machine_at_the_top_of_a_project_are_told() -> None:
    assert problems({"machines": {"db": IMAGE}, "memory": "1GiB"}) == {"memory": "no such setting"}
    assert "machines" in str(hints({"machines": {"db": IMAGE}, "memory": "1GiB"})["memory"])


def test_long_names_are_told() -> None:
    found = problems({"name": "a" * 40, "machines": {"b" * 30: IMAGE}})
    assert "more than 63 characters" in found["machines." + "b" * 30]


def test_two_machines_cannot_share_a_port_of_the_host_or_a_mac() -> None:
    mac = "52:54:00:00:00:02"
    data = {
        "networks": {"back": {}},
        "machines": {
            "a": {**IMAGE, "ports": ["80:80"], "networks": {"back": {"mac": mac}}},
            "b": {**IMAGE, "ports": ["443", "80:8080"], "networks": {"back": {"mac": mac}}},
            "c": {**IMAGE, "ports": ["127.0.0.9:80:80"]},
        },
    }
    assert problems(data) == {
        "machines.b.ports[1]": "the host's port 80 is already used by machines.a",
        "machines.b.networks.back.mac": f"the MAC address {mac} is already used by machines.a",
    }


def test_two_machines_cannot_share_an_address() -> None:
    def on_back(address: str) -> dict[str, Any]:
        return {**IMAGE, "networks": {"back": {"ipv4": address}}}

    machines = {
        "a": on_back("10.1.0.5"),
        "b": on_back("10.1.0.5"),
        "c": on_back("10.2.0.5"),
        "d": on_back("10.1.0.1"),
        "e": on_back("8.8.8.8"),
        "f": {**on_back("10.1.0.6"), "scale": 2},
    }
    found = problems({"networks": {"back": {"subnet": "10.1.0.0/24"}}, "machines": machines})
    assert found == {
        "machines.b.networks.back.ipv4": "the address 10.1.0.5 is already used by machines.a",
        "machines.c.networks.back.ipv4": "the address 10.2.0.5 is not in the subnet 10.1.0.0/24",
        "machines.d.networks.back.ipv4": "10.1.0.1 is the address of the network's switch",
        "machines.e.networks.back.ipv4": "8.8.8.8 is not a private address",
        "machines.f.networks.back.ipv4": "2 machines cannot share an address",
    }
    found = problems({"networks": {"back": {}}, "machines": {"a": on_back("10.1.0.5")}})
    assert found == {"machines.a.networks.back.ipv4": "the network 'back' has no subnet of its own"}


def test_ports_without_an_address_are_published_on_the_projects_address() -> None:
    machine = project(db={**IMAGE, "ports": ["5432:5432", "127.0.0.1:80:80"]}).machines["db"]
    assert [port.host for port in machine.published_on("127.9.8.7").ports] == ["127.9.8.7", "127.0.0.1"]


def test_an_mtu_has_the_bounds_of_the_switch() -> None:
    assert (LEAST_MTU, MOST_MTU) == (switch_settings.LEAST_MTU, switch_settings.MOST_MTU)


# Scale


def test_scale_makes_equal_machines_that_share_a_name() -> None:
    spec = project(web={**IMAGE, "scale": 2, "depends_on": ["db"]}, db={**IMAGE, "scale": 2})
    assert list(spec.machines) == ["web-1", "web-2", "db-1", "db-2"]
    assert spec.machines["web-1"].depends_on == {"db-1": "started", "db-2": "started"}
    assert spec.machines["web-2"].spec.nics[1].aliases == ("web",)
    assert spec.roles_of("web") == ["web-1", "web-2"]


def test_scale_contradicts_what_only_one_machine_can_have() -> None:
    web = {
        **IMAGE,
        "scale": 2,
        "ports": ["80:80", "443"],
        "hostname": "web",
        "networks": {"back": {"mac": "52:54:00:00:00:02"}},
    }
    found = problems({"networks": {"back": {}}, "machines": {"web": web, "web-1": IMAGE}})
    assert set(found) == {
        "machines.web.ports[0]", "machines.web.hostname", "machines.web.networks.back.mac", "machines.web-1",
    }  # fmt: skip


# Dependencies


def test_a_list_waits_until_machines_with_a_check_are_healthy() -> None:
    spec = project(a={**IMAGE, "depends_on": ["b", "c"]}, b=IMAGE, c={**IMAGE, "healthcheck": {"port": 80}})
    assert spec.machines["a"].depends_on == {"b": "started", "c": "healthy"}


def test_a_table_names_the_condition() -> None:
    wanted = {"b": "completed", "c": {"condition": "started"}, "d": {}}
    check = {**IMAGE, "healthcheck": {"unit": "nginx"}}
    spec = project(a={**IMAGE, "depends_on": wanted}, b=IMAGE, c=check, d=check)
    assert spec.machines["a"].depends_on == {"b": "completed", "c": "started", "d": "healthy"}


def test_composes_words_for_conditions_are_translated() -> None:
    data = {"machines": {"a": {**IMAGE, "depends_on": {"b": "service_healthy"}}, "b": IMAGE}}
    assert hints(data)["machines.a.depends_on.b"] == "did you mean 'healthy'?"


def test_a_healthy_machine_needs_a_check() -> None:
    data = {"machines": {"a": {**IMAGE, "depends_on": {"b": "healthy"}}, "b": IMAGE}}
    assert problems(data) == {"machines.a.depends_on.b": "the machine 'b' has no health check"}


def test_cycles_are_named_in_full() -> None:
    data = {
        "machines": {
            "a": {**IMAGE, "depends_on": ["b"]},
            "b": {**IMAGE, "depends_on": ["c"]},
            "c": {**IMAGE, "depends_on": ["a"]},
            "d": {**IMAGE, "depends_on": ["d"]},
        }
    }
    found = problems(data)
    assert found["machines.d.depends_on"] == "'d' depends on itself"
    (cycle,) = [message for message in found.values() if "->" in message]
    assert cycle.removeprefix("the machines wait for each other: ") in (
        "a -> b -> c -> a", "b -> c -> a -> b", "c -> a -> b -> c",
    )  # fmt: skip


def test_a_dependency_runs_whenever_the_machine_runs() -> None:
    machines = {
        "web": {**IMAGE, "depends_on": ["debug"]},
        "debug": {**IMAGE, "profiles": ["debug", "test"]},
        "more": {**IMAGE, "profiles": ["test"], "depends_on": ["debug"]},
    }
    assert set(problems({"machines": machines})) == {"machines.web.depends_on"}


def test_machines_start_in_generations_and_stop_in_reverse() -> None:
    spec = project(
        web={**IMAGE, "depends_on": ["app"]},
        app={**IMAGE, "depends_on": ["db", "cache"]},
        db=IMAGE,
        cache=IMAGE,
    )
    assert start_order(spec) == [["db", "cache"], ["app"], ["web"]]
    assert stop_order(spec) == [["web"], ["app"], ["db", "cache"]]
    assert start_order(spec, {"web", "db"}) == [["web", "db"]]


@given(st.dictionaries(st.integers(0, 7), st.sets(st.integers(0, 7)), max_size=8))
def test_a_graph_has_an_order_or_a_cycle(graph: dict[int, set[int]]) -> None:
    names = {str(one) for one in graph} | {str(one) for others in graph.values() for one in others}
    wanted = {name: [str(one) for one in sorted(graph.get(int(name), ()))] for name in sorted(names)}
    cycles = list(find_cycles(wanted))
    for cycle in cycles:
        assert cycle[0] == cycle[-1]
        assert all(after in wanted[before] for before, after in itertools.pairwise(cycle))
    if cycles or not wanted:
        return
    spec = project(
        **{f"m{name}": {**IMAGE, "depends_on": [f"m{one}" for one in wanted[name]]} for name in wanted}
    )
    generation = {role: number for number, roles in enumerate(start_order(spec)) for role in roles}
    assert set(generation) == set(spec.machines)
    for role, machine in spec.machines.items():
        assert all(generation[other] < generation[role] for other in machine.depends_on)


# Profiles


def test_machines_with_profiles_start_on_request() -> None:
    spec = project(web=IMAGE, debug={**IMAGE, "profiles": ["debug"], "depends_on": ["web"]}, other=IMAGE)
    assert choose_roles(spec) == ["web", "other"]
    assert choose_roles(spec, profiles=["debug"]) == ["web", "debug", "other"]
    assert choose_roles(spec, ["debug"]) == ["web", "debug"]
    with pytest.raises(InvalidInput, match="no profile 'debg'") as error:
        choose_roles(spec, profiles=["debg"])
    assert error.value.hint == "did you mean 'debug'?"
    with pytest.raises(InvalidInput, match="no machine 'wbe'") as error:
        choose_roles(spec, ["wbe"])
    assert error.value.hint == "did you mean 'web'?"


def test_the_key_of_equal_machines_names_all_of_them() -> None:
    assert choose_roles(project(web={**IMAGE, "scale": 2}, db=IMAGE), ["web"]) == ["web-1", "web-2"]


# Health checks


@pytest.mark.parametrize(
    ("check", "kind", "text"),
    [
        ({"test": "pg_isready -q"}, "test", "test 'pg_isready -q'"),
        ({"test": ["CMD", "curl", "-f", "x"]}, "test", "test 'curl -f x'"),
        ({"test": ["CMD-SHELL", "true"]}, "test", "test 'true'"),
        ({"port": 5432}, "port", "port 5432"),
        ({"http": "http://localhost:8080/health"}, "http", "http http://localhost:8080/health"),
        ({"unit": "nginx"}, "unit", "unit nginx.service"),
        ({"unit": "docker.socket"}, "unit", "unit docker.socket"),
        ({"file": "/run/ready"}, "file", "file /run/ready"),
        ({"log": "ready to accept"}, "log", "log 'ready to accept'"),
        ({"log": "[[:digit:]]+ ready"}, "log", "log '[[:digit:]]+ ready'"),
        ({"log": {"pattern": "x", "unit": "db"}}, "log", "log 'x' in db.service"),
    ],
)
def test_a_check_has_one_kind(check: dict[str, Any], kind: str, text: str) -> None:
    found = project(db={**IMAGE, "healthcheck": check}).machines["db"].healthcheck
    assert found is not None
    assert (found.kind, found.describe()) == (kind, text)


def test_times_are_composes() -> None:
    times = {"interval": "1m30s", "timeout": "500ms", "retries": 5, "start_period": 7, "start_interval": "1s"}
    check = project(db={**IMAGE, "healthcheck": {"port": 1, **times}}).machines["db"].healthcheck
    assert check is not None
    assert (check.interval, check.timeout, check.retries, check.start_period) == (90, 0.5, 5, 7)


@pytest.mark.parametrize(
    ("check", "place", "message"),
    [
        ({}, "", "names no check"),
        ({"interval": "1s"}, "", "names no check"),
        ({"port": 1, "test": "true"}, ".port", "contradicts test: a check has one kind"),
        ({"prot": 1}, ".prot", "no such setting"),
        ({"port": 0}, ".port", "expected a port from 1 to 65535, got 0"),
        ({"http": "localhost:80"}, ".http", "expected an address like"),
        ({"http": "http://u:p@x/"}, ".http", "an address has no user"),
        ({"http": "http://x:99999/"}, ".http", "expected an address like"),
        ({"unit": "a b"}, ".unit", "expected a unit of systemd"),
        ({"file": "ready"}, ".file", "expected the absolute path"),
        ({"log": "("}, ".log.pattern", "is not a regular expression"),
        ({"log": {"pattern": "x", "unit": "a", "file": "/a"}}, ".log", "names a unit and a file"),
        ({"test": []}, ".test", "expected a shell command or a list"),
        ({"test": ["NONE"]}, ".test", "'NONE' is not a check"),
        ({"port": 1, "interval": "0s"}, ".interval", "at least 50ms"),
        ({"port": 1, "retries": 0}, ".retries", "expected a number of failures"),
        ({"port": 1, "timeout": "soon"}, ".timeout", "expected a time like"),
        ({"port": 1, "disable": "yes"}, ".disable", "expected true or false"),
        (7, "", "expected a table"),
    ],
)
def test_bad_checks_are_told(check: Any, place: str, message: str) -> None:
    found = problems({"machines": {"db": {**IMAGE, "healthcheck": check}}})
    assert list(found) == [f"machines.db.healthcheck{place}"]
    assert message in found[f"machines.db.healthcheck{place}"]


# Shared parts


def test_a_machine_takes_over_settings() -> None:
    data = {
        "name": "shop",
        "shared": {
            "base": {**IMAGE, "environment": {"A": "1", "B": "2"}, "ports": ["80"]},
            "big": {"extends": "base", "memory": "2GiB", "healthcheck": {"port": 80, "interval": "1s"}},
        },
        "machines": {
            "web": {"extends": ["big"], "environment": {"B": "3"}, "ports": ["443"]},
            "db": {"extends": "web", "healthcheck": {"unit": "db"}},
            "quiet": {"extends": "db", "healthcheck": {"disable": True}},
        },
    }
    spec = parse_project(data)
    web, db = spec.machines["web"], spec.machines["db"]
    assert web.spec.environment == {"A": "1", "B": "3"}
    assert [port.guest_port for port in web.spec.ports] == [80, 443]
    assert web.spec.memory == 2 << 30
    assert db.healthcheck is not None
    assert (db.healthcheck.kind, db.healthcheck.interval) == ("unit", 1.0)
    assert spec.machines["quiet"].healthcheck is None


def test_problems_of_shared_parts_are_told() -> None:
    data = {
        "shared": {
            "a": {"extends": "b"},
            "b": {"extends": "a"},
            "c": {"extends": "bse"},
            "web": {},
            "base": 3,
            "d": {"extends": 3},
        },
        "machines": {"web": {**IMAGE, "extends": "a"}},
    }
    found = problems(data)
    assert "extends itself: a -> b -> a" in str(found)
    assert found["shared.c.extends"] == "no shared part and no machine 'bse'"
    assert "a machine is called 'web', too" in found["shared.web"]
    assert "shared.base" in found
    assert "shared.d.extends" in found


# Images from recipes


def test_a_recipe_gives_the_image() -> None:
    recipe = {"base": "debian:12", "packages": ["nginx"]}
    spec = project(web={"build": recipe}, db={"build": recipe, "image": "my-db"})
    assert [machine.spec.image for machine in spec.machines.values()] == ["shop-web", "my-db"]
    assert spec.machines["web"].build is not None
    assert spec.machines["web"].build.packages == ("nginx",)


def test_problems_of_a_recipe_are_told() -> None:
    assert set(problems({"machines": {"web": {"build": {"base": "debian:12", "packges": []}}}})) == {
        "machines.web.build.packges"
    }
    assert set(problems({"machines": {"web": {"build": "web.toml"}}})) == {"machines.web.build"}


def test_problems_of_a_lock_are_told() -> None:
    build, image = {"build": {"base": "debian:12"}}, {"image": "debian:12"}
    for machine, lock, message in (
        (image, {"lock": 1}, "locks the image that `build` makes, and there is no `build`"),
        (build, "web.lock", "expected the content of a lock, got 'web.lock'"),
        (build, {"lock": 2, "arch": "x86_64", "packages": {}}, "expected 1, got 2"),
    ):
        (told,) = problems({"machines": {"web": {**machine, "lock": lock}}}).items()
        assert told[0] == "machines.web.lock"
        assert message in told[1]


# The resolved project


FULL = {
    "name": "shop",
    "networks": {"back": {"subnet": "10.1.0.0/24"}, "front": {"mtu": 9000}},
    "shared": {"base": {**IMAGE, "memory": "512MiB"}},
    "machines": {
        "db": {
            "extends": "base",
            "networks": {"back": {"aliases": ["primary"], "mac": "52:54:00:00:00:02"}},
            "disk": "4GiB",
            "disks": [{"size": "1GiB", "serial": "data"}],
            "files": [{"path": "/a", "content": "x"}],
            "users": ["admin"],
            "limits": {"cpu": "150%"},
            "healthcheck": {"log": {"pattern": "ready", "unit": "postgresql"}, "interval": "1s"},
        },
        "web": {
            "extends": "base",
            "scale": 2,
            "networks": {"front": {"aliases": ["www"]}, "back": {}},
            "ports": ["80", "127.0.0.1::443", {"guest_port": 22}],
            "depends_on": ["db"],
            "healthcheck": {"test": "true"},
        },
        "nat": {**IMAGE, "nics": ["back", "uplink", "back,model=e1000e"]},
        "dark": {**IMAGE, "uplink": False, "networks": []},
        "shut": {**IMAGE, "uplink": "isolated", "networks": ["back"], "profiles": ["x"]},
        "made": {"build": {"base": "debian:12", "packages": ["nginx"]}, "depends_on": {"web": "completed"}},
    },
}


def test_the_resolved_project_gives_the_same_project() -> None:
    spec = parse_project(FULL)
    assert parse_project(to_data(spec)) == spec


NAMES = ("db", "web", "app", "cache")
MACHINE = st.fixed_dictionaries(
    {"image": st.sampled_from(["debian:12", "debian:13"])},
    optional={
        "memory": st.sampled_from(["512MiB", "1GiB", 1 << 29]),
        "scale": st.integers(1, 3),
        "networks": st.lists(st.sampled_from(["back", "front"]), unique=True)
        | st.fixed_dictionaries({"back": st.fixed_dictionaries({}, optional={"aliases": st.just(["one"])})}),
        "uplink": st.sampled_from([True, False, "isolated"]),
        "depends_on": st.lists(st.sampled_from(NAMES), unique=True, max_size=2),
        "healthcheck": st.sampled_from([{"port": 80}, {"test": "true", "interval": "90s"}, {"log": "x"}]),
        "ports": st.lists(st.sampled_from(["80", "127.0.0.1::443", "[::1]::22"]), unique=True),
        "extends": st.just("base"),
        "environment": st.dictionaries(st.sampled_from(["A", "B"]), st.text("a$ {}", max_size=5)),
    },
)


@given(st.dictionaries(st.sampled_from(NAMES), MACHINE, min_size=1))
def test_every_resolved_project_gives_the_same_project(machines: dict[str, Any]) -> None:
    networks: dict[str, Any] = {"back": {}, "front": {"mtu": 9000}}
    shared = {"base": {"vcpus": 3, "environment": {"A": "shared"}, "ports": ["5432"]}}
    try:
        spec = parse_project({"name": "shop", "machines": machines, "networks": networks, "shared": shared})
    except InvalidSpec:
        return  # a cycle, or a machine that is not there
    assert parse_project(to_data(spec)) == spec
    assert parse_project(json.loads(render_config(spec, "json"))) == spec
    assert compare_projects(spec, parse_project(to_data(spec))).is_empty


def test_the_resolved_project_is_toml_and_json() -> None:
    pytest.importorskip("tomli_w")
    spec = parse_project(FULL)
    assert parse_project(tomllib.loads(render_config(spec))) == spec
    assert parse_project(json.loads(render_config(spec, "json"))) == spec
    assert 'memory = "512MiB"' in render_config(spec)
    assert '"127.0.0.1::443"' in render_config(spec)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
), max_leaves=10), st.sampled_from([
    "healthcheck", "depends_on", "networks", "profiles", "scale", "build", "extends", "nics", "uplink",
]))  # fmt: skip
def test_no_value_breaks_the_reader(value: Any, name: str) -> None:
    for data in (
        {"machines": {"db": {**IMAGE, name: value}}},
        {"machines": {"db": IMAGE}, "networks": {"a": value}, "shared": {"b": value}},
        {"machines": {"db": IMAGE}, "networks": value},
        {"machines": value, "name": value},
        {"machines": {"a": IMAGE, "db": {"extends": "t"}}, "shared": {"t": {**IMAGE, name: value}}},
    ):
        with contextlib.suppress(InvalidSpec):
            parse_project({"name": "shop", **data})


# Container images


NGINX = {"image": "docker://docker.io/library/nginx:latest"}
CONTAINER = Container(
    reference="docker://docker.io/library/nginx:latest",
    digest="sha256:0",
    healthcheck={"test": ["CMD", "curl", "localhost"], "interval": 30},
)


def test_compose_words_for_a_program() -> None:
    words = {"entrypoint": "/entry -v", "command": ["serve"], "user": 1000, "working_dir": "/srv"}
    spec = project(web={**NGINX, **words}).machines["web"].spec
    assert (spec.entrypoint, spec.command) == (("/entry", "-v"), ("serve",))
    assert (spec.user, spec.workdir) == ("1000", "/srv")
    data = {"machines": {"web": {**NGINX, "working_dir": "/a", "workdir": "/b"}}}
    assert "another word for workdir" in problems(data)["machines.web.working_dir"]


def test_the_health_check_of_the_image() -> None:
    plain = project(web=NGINX).machines["web"]
    check = plain.check_of(CONTAINER)
    assert check is not None
    assert (check.test, check.interval, check.retries) == (("curl", "localhost"), 30.0, 3)
    assert plain.check_of(None) is None
    assert plain.check_of(CONTAINER.model_copy(update={"healthcheck": None})) is None
    assert plain.check_of(CONTAINER.model_copy(update={"healthcheck": {"test": 5}})) is None
    disabled = project(web={**NGINX, "healthcheck": {"disable": True}})
    assert disabled.machines["web"].check_of(CONTAINER) is None
    assert parse_project(to_data(disabled)) == disabled
    own = project(web={**NGINX, "healthcheck": {"port": 80}}).machines["web"].check_of(CONTAINER)
    assert own is not None
    assert own.port == 80


def test_a_container_image_may_have_the_check_that_another_machine_waits_for() -> None:
    waits = {**IMAGE, "depends_on": {"web": "healthy"}}
    assert project(web=NGINX, app=waits).machines["app"].depends_on == {"web": "healthy"}
    disabled = {**NGINX, "healthcheck": {"disable": True}}
    data = {"machines": {"web": disabled, "app": waits}}
    assert problems(data) == {"machines.app.depends_on.web": "the machine 'web' has no health check"}

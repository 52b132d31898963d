"""The difference between two versions of a project."""

from __future__ import annotations

from typing import Any

import pytest

from bough.spec.project.changes import compare_projects
from bough.spec.project.model import ProjectSpec
from bough.spec.project.parse import parse_project

BUILD = {"base": "debian:12"}
LOCK = {"lock": 1, "arch": "x86_64", "packages": {"bash": "5.2"}}
DB = {"image": "debian:12", "networks": ["back"]}


def project(**db: Any) -> ProjectSpec:
    return parse_project({"name": "shop", "networks": {"back": {}}, "machines": {"db": {**DB, **db}}})


@pytest.mark.parametrize(
    ("before", "after", "kind", "settings"),
    [
        ({}, {}, "same", ()),
        ({}, {"memory": "1GiB"}, "same", ()),
        ({}, {"memory": "2GiB"}, "stopped", ("memory",)),
        ({}, {"ports": ["80"]}, "running", ("ports",)),
        ({"ports": ["80"]}, {"mounts": ["/a:/srv/a"]}, "running", ("ports", "mounts")),
        ({}, {"mounts": ["/a:/srv/a"], "commands": ["true"]}, "new", ("commands", "mounts")),
        ({}, {"healthcheck": {"port": 80}}, "running", ("healthcheck",)),
        ({}, {"profiles": ["a"]}, "running", ("profiles",)),
        ({}, {"uplink": False}, "stopped", ("nics",)),
        ({}, {"networks": {"back": {"aliases": ["x"]}}}, "stopped", ("nics",)),
        ({}, {"networks": []}, "stopped", ("nics",)),
        ({}, {"build": {"base": "debian:12"}}, "new", ("build",)),
        ({"build": BUILD}, {"build": BUILD, "lock": LOCK}, "new", ("lock",)),
    ],
)
def test_the_table_of_settings_says_what_a_change_needs(
    before: Any, after: Any, kind: str, settings: tuple[str, ...]
) -> None:
    change = compare_projects(project(**before), project(**after))
    assert (change.machines["db"].kind, change.machines["db"].settings) == (kind, settings)
    assert change.problems == []
    assert change.is_empty is (kind == "same")


def test_machines_and_networks_come_and_go() -> None:
    before = parse_project(
        {"name": "s", "networks": {"a": {}, "b": {}}, "machines": {"x": DB | {"networks": ["a"]}}}
    )
    after = parse_project(
        {"name": "s", "networks": {"a": {"mtu": 9000}, "c": {}}, "machines": {"y": DB | {"networks": ["a"]}}}
    )
    change = compare_projects(before, after)
    assert {role: one.kind for role, one in change.machines.items()} == {"x": "removed", "y": "added"}
    assert change.networks == {"a": "new", "b": "removed", "c": "added"}


def test_a_disk_that_became_smaller_is_refused() -> None:
    before = project(disk="20GiB", disks=["10GiB"])
    (problem,) = compare_projects(before, project(disk="10GiB", disks=["10GiB"])).problems
    assert problem.place == "machines.db.disk"
    assert problem.message == "the disk would shrink from 20 GiB to 10 GiB"
    assert problem.hint is not None
    assert "--volumes" in problem.hint
    (problem,) = compare_projects(before, project(disk="20GiB", disks=["1GiB"])).problems
    assert problem.place == "machines.db.disks[0]"
    assert compare_projects(before, project(disk="30GiB", disks=["10GiB"])).problems == []


def test_a_change_is_told_in_words() -> None:
    change = compare_projects(project(), project(memory="2GiB", ports=["80"]))
    assert change.machines["db"].describe() == "change, with a restart: memory, ports"
    assert compare_projects(project(), project()).machines["db"].describe() == "unchanged"

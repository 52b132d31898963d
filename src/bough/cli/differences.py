"""The command diff."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from bough.cli.machine_choice import machine_here, machine_options
from bough.cli.output import clean, progress, show_json
from bough.cli.service import NAME, connect, json_option
from bough.errors import NotFound
from bough.units import format_size

if TYPE_CHECKING:
    from bough.contract.answers import SystemDifferences

_SIGNS = {"added": "+", "removed": "-", "changed": "~"}
#: Files of one directory without a diff: more become one line.
_MANY = 8
_MOST_DIRECTORIES = 30
_MOST_PACKAGES = 200
_IDENTITY = ("/etc/hostname", "/etc/machine-id")
_HOST_KEYS = "/etc/ssh/ssh_host_"
#: Changes of a directory's use below this size are noise.
_LEAST_USE_BYTES = 1 << 20


@click.command()
@machine_options
@click.argument("systems", nargs=-1, required=True, type=NAME, metavar="[BEFORE] AFTER")
@click.option("--brief", is_flag=True, help="Name the changed configuration files, without their diffs.")
@json_option
def diff(systems: tuple[str, ...], brief: bool, as_json: bool) -> int:
    """Show what differs between two systems: packages, configuration, services, users, ports, files.

    BEFORE and AFTER are machines, running or not, snapshots, or images. With one machine or snapshot: what
    changed since the snapshot that it was forked from, or else since its image. If a name has several
    meanings, write machine:NAME, snapshot:NAME or image:NAME.

    Private keys, hashes of passwords, and files that not every user of the guest may read are named only. A
    running machine is seen as it is at this moment; its guest is held for some milliseconds.
    """
    if len(systems) > 2:
        raise click.UsageError("name one or two systems")
    from bough.client.differences import diff as compare

    *before, after = map(_reference, systems)
    with progress() as report:
        found = compare(connect().api, after, before[0] if before else None, progress=report)
    if as_json:
        show_json(found.raw)
        return 0
    for line in render(found, brief=brief):
        print(line)
    return 0


def _reference(name: str) -> str:
    try:
        return machine_here(name)
    except NotFound:
        return name


def render(found: SystemDifferences, *, brief: bool = False) -> Iterator[str]:
    """Yield the lines for people."""
    yield f"--- {_title(found.before)}"
    yield f"+++ {_title(found.after)}"
    parts = [
        ("packages", _packages(found.packages)),
        ("identity, which each machine has for itself", _identity(found.configuration)),
        ("configuration", _configuration(found.configuration, brief=brief)),
        ("services at boot", _changes(found.units)),
        ("users", _accounts(found.users)),
        ("groups", _accounts(found.groups)),
        ("kernel settings in files", _changes(found.sysctls)),
        ("kernel settings in force", _changes(found.live_sysctls or [])),
        (_ports_title(found.ports), _ports(found.ports)),
        ("other files", _files(found.files)),
        ("disk use", _use(found.disk_use)),
        ("withheld", [f"  {path}" for path in found.withheld]),
        ("notes", [f"  {note}" for note in found.notes]),
    ]
    told = False
    for title, part in parts:
        lines = list(part)
        if lines:
            told = told or title != "notes"
            yield ""
            yield f"{title}:"
            yield from map(clean, lines)
    if not told:
        yield ""
        yield "no differences"


def _title(system: dict[str, Any]) -> str:
    more = [str(system[key]) for key in ("title", "state") if system.get(key)]
    return clean(f"{system.get('kind')} {system.get('name')}" + (f" ({', '.join(more)})" if more else ""))


def _packages(found: dict[str, Any]) -> Iterator[str]:
    lines = [f"  + {one['name']} {one['version']}" for one in found.get("added", ())]
    lines += [f"  - {one['name']} {one['version']}" for one in found.get("removed", ())]
    lines += [f"  ~ {one['name']} {one['before']} -> {one['after']}" for one in found.get("changed", ())]
    yield from lines[:_MOST_PACKAGES]
    if len(lines) > _MOST_PACKAGES:
        yield f"  ... {len(lines) - _MOST_PACKAGES} more; --json has all"


def _is_identity(one: dict[str, Any]) -> bool:
    return one["path"] in _IDENTITY or one["path"].startswith(_HOST_KEYS)


def _identity(found: Sequence[dict[str, Any]]) -> list[str]:
    """Name the files of the identity in one line: their content is different in any two machines."""
    names = [one["path"] for one in found if _is_identity(one) and not one["path"].startswith(_HOST_KEYS)]
    if any(one["path"].startswith(_HOST_KEYS) for one in found):
        names.append("ssh host keys")
    return [f"  ~ {', '.join(names)}"] if names else []


def _configuration(found: Sequence[dict[str, Any]], *, brief: bool) -> Iterator[str]:
    found = [one for one in found if not _is_identity(one)]
    plain = [one for one in found if not one.get("diff") or brief]
    many = Counter((_directory(one), one["change"]) for one in plain if not one.get("withheld"))
    told = set()
    for one in found:
        key = (_directory(one), one["change"])
        if not one.get("withheld") and many[key] > _MANY and (brief or not one.get("diff")):
            if key not in told:
                told.add(key)
                yield f"  {_SIGNS[one['change']]} {many[key]} files in {key[0]}"
            continue
        more = [*one.get("details", ()), *([one["why"]] if one.get("why") else [])]
        more += [f"withheld: {one['withheld']}"] if one.get("withheld") else []
        more = [text for text in more if text != "content"]
        yield f"  {_SIGNS[one['change']]} {one['path']}" + (f" ({', '.join(more)})" if more else "")
        if one.get("diff") and not brief:
            yield from (f"    {line}" for line in one["diff"].split("\n")[2:])


def _directory(one: dict[str, Any]) -> str:
    return str(one["path"]).rpartition("/")[0]


def _changes(found: Sequence[dict[str, Any]]) -> list[str]:
    return [f"  {one['name']}: {_value(one['before'])} -> {_value(one['after'])}" for one in found]


def _value(value: str | None) -> str:
    return "(not set)" if value is None else value or '""'


def _accounts(found: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"  {_SIGNS[one['change']]} {one['name']}"
        + (f" ({', '.join(one['details'])})" if one["details"] else "")
        for one in found
    ]


def _ports_title(found: dict[str, Any]) -> str:
    both = found.get("before") is not None and found.get("after") is not None
    return "listening ports" if both else "listening ports of the running machine"


def _ports(found: dict[str, Any]) -> list[str]:
    before, after = ([_port(one) for one in found.get(side) or ()] for side in ("before", "after"))
    if found.get("before") is None or found.get("after") is None:
        return [f"  {port}" for port in before or after]
    removed = [f"  - {port}" for port in before if port not in after]
    return [*(f"  + {port}" for port in after if port not in before), *removed]


def _port(one: dict[str, Any]) -> str:
    address = one["address"]
    return f"{one['protocol']} {f'[{address}]' if ':' in address else address}:{one['port']}"


def _files(found: dict[str, Any]) -> Iterator[str]:
    directories = found.get("directories", [])
    for one in directories[:_MOST_DIRECTORIES]:
        counts = [f"{one[change]} {change}" for change in _SIGNS if one[change]]
        yield f"  {one['path']}: {', '.join(counts)}"
    if len(directories) > _MOST_DIRECTORIES:
        yield f"  ... {len(directories) - _MOST_DIRECTORIES} more directories; --json has all"
    if found.get("of_packages"):
        yield f"  {found['of_packages']} files of the packages above"


def _use(found: dict[str, Any]) -> Iterator[str]:
    before, after = found.get("before_bytes", 0), found.get("after_bytes", 0)
    large = [
        one
        for one in found.get("directories", ())
        if abs(one["after_bytes"] - one["before_bytes"]) >= _LEAST_USE_BYTES
    ]
    if large or abs(after - before) >= _LEAST_USE_BYTES:
        yield f"  all: {format_size(before)} -> {format_size(after)}"
    for one in large[:_MOST_DIRECTORIES]:
        yield f"  {one['path']}: {format_size(one['before_bytes'])} -> {format_size(one['after_bytes'])}"

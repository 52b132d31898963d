"""Render the settings of a project's file: docs/project-file.md and examples/project.toml."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from bough.spec.project.settings import (
    HEALTH_SETTINGS,
    MACHINE_SETTINGS,
    NETWORK_SETTINGS,
    TOP_SETTINGS,
    ProjectSetting,
)

_PAGE_HEAD = """\
# The file of a project

This page lists each setting of `bough.toml`, the file that describes the machines and networks of a
[project](projects.md). Generated from the code by `make docs`.

[examples/project.toml](../examples/project.toml) shows each setting. A setting has the name that Docker
Compose uses, if there is one. `bough config` checks the file and prints all mistakes at once, each with its
line.
"""
_FILE = """\
A file with `image` at the top describes a project of one machine. The machine's role is the file's `name`,
or `main`. The project has the name of the directory.
"""
_MACHINE = """\
A machine has all [settings of a machine](spec.md), and the following. Relative paths start at the file.
The name of the table is the machine's role.
"""
_DEPENDS = """\
## Order

`depends_on` names machines and a condition for each. The machine starts when all conditions are true.

| condition | the other machine |
|---|---|
| `started` | has answered, and its first boot is set up |
| `healthy` | has passed its health check |
| `completed` | has powered itself off, after its first boot was set up |

A list names no conditions: a machine with a health check must be `healthy`, any other machine `started`.
Only machines with the same profiles may depend on a machine with profiles. `bough up db` starts `db` with
all its dependencies.
"""
_NETWORKS = """\
The first network card of a machine is on the uplink, unless `uplink = false`. The next cards are on the
networks of the machine, in order. If the project has several machines, a machine without `networks` is on
the network `default`. `networks = []` connects a machine to no network. Machines with `scale` share the
name of their table as an alias.

A network with `internal = false` has an uplink of its own: machines with `uplink = false` reach the outside
through the first of their networks with an uplink. A machine with a card on the uplink uses this card.
"""
_HEALTH = """\
Exactly one of the first six settings names the check. The guest repeats the check. The first success makes
the machine healthy. After the start period, `retries` failures in a row make the machine unhealthy. A failed
unit makes the machine unhealthy at once. A machine without a health check is healthy when its agent has
answered. A container image may have a health check of its own (HEALTHCHECK). `disable = true` removes the
health check of a shared part and of the image.
"""
_EXTENDS = """\
## Shared settings

`extends = ["base"]` gives the machine the settings of the table `[shared.base]` or `[machines.base]`. Several
names apply in order, the machine's own settings last.

`extends = { file = "../common/base.toml", machine = "server" }` takes a table of another file, also in the
list. Without `machine`, the file has one machine. Paths in the other file start at that file. The project
keeps what it read: a changed file takes effect at the next `bough up`.

| settings | the machine has |
|---|---|
| `environment`, `limits`, `networks`, `depends_on`, `healthcheck` | the entries of both |
| lists, such as `ports`, `files`, `commands` | the shared entries, then the machine's own |
| others | the machine's own value, or else the shared value |

If both have an entry, like one variable of `environment`, the machine's own entry is used.
"""
_VARIABLES = """\
## Variables

Texts may contain variables. The environment of `bough` gives the value of a variable. If the variable is not
set there, the file `.env` beside the project's file gives the value. bough reads only variables that the
file names.

| text | stands for |
|---|---|
| `${NAME}` | the value. A variable that is not set is an error |
| `${NAME:-word}` | the value, or `word` if the variable is not set or empty |
| `${NAME-word}` | the value, or `word` if the variable is not set |
| `${NAME:?message}` | the value, or an error with the message if the variable is not set or empty |
| `${NAME?message}` | the value, or an error with the message if the variable is not set |
| `${NAME:+word}` | `word` if the variable is set and not empty, or else nothing |
| `${NAME+word}` | `word` if the variable is set, or else nothing |
| `$$` | a dollar sign. `$${NAME}` and `$NAME` are variables of the guest's shell |

`.env` has lines like `NAME=value`. A value with spaces needs quotes. bough replaces no variables in the
values of `.env`. The record of the project in BOUGH_HOME contains the values, also secrets.
"""

_EXAMPLE_HEAD = """\
# A project, for `bough up` in the directory of the file. The file is called bough.toml there.
# Settings behind a # are shown with their default or an example.

"""
#: Settings that the example has in use: without them, the example would have no machine or no connection.
_USED = frozenset(("extends", "networks", "port"))


def render_page() -> str:
    """Return docs/project-file.md."""
    parts = [
        _PAGE_HEAD,
        _table("The file", _FILE, TOP_SETTINGS),
        _table("`[machines.NAME]`", _MACHINE, MACHINE_SETTINGS),
        _table("`[networks.NAME]`", _NETWORKS, NETWORK_SETTINGS),
        _table("`[machines.NAME.healthcheck]`", _HEALTH, HEALTH_SETTINGS),
        _DEPENDS,
        _EXTENDS,
        _VARIABLES,
    ]
    return "\n".join(parts)


def render_example() -> str:
    """Return examples/project.toml: every setting of a project's file."""
    database = {name: one for name, one in MACHINE_SETTINGS.items() if name not in ("depends_on", "scale")}
    web = {name: MACHINE_SETTINGS[name] for name in ("extends", "networks", "depends_on", "scale")}
    used = {name: ProjectSetting(one.text, one.example) for name, one in database.items() if not one.is_table}
    blocks = [
        _EXAMPLE_HEAD + _block("", {"name": TOP_SETTINGS["name"]}, ()),
        _block("[networks.back]", NETWORK_SETTINGS, ()),
        '[shared.base]\nimage = "debian:12"\nmemory = "${MEMORY:-512MiB}"\n',
        _block("[machines.db]", used, _USED),
        _block("[machines.db.healthcheck]", HEALTH_SETTINGS, _USED),
        _block("[machines.web]", web, tuple(web)).rstrip("\n")
        + '\n# All settings of a machine: examples/machine.toml.\nports = ["80"]\n',
    ]
    return "\n".join(blocks)


def _table(title: str, text: str, settings: Mapping[str, ProjectSetting]) -> str:
    rows = [
        f"| `{name}` | {one.text.replace('|', chr(92) + '|')} | {_cell(one)} |"
        for name, one in settings.items()
    ]
    return "\n".join([f"## {title}\n", text, "| setting | meaning | example |", "|---|---|---|", *rows, ""])


def _cell(setting: ProjectSetting) -> str:
    return f"`{setting.example}`" if setting.example else ""


def _block(head: str, settings: Mapping[str, ProjectSetting], used: frozenset[str] | tuple[str, ...]) -> str:
    lines = [head] if head else []
    for name, one in settings.items():
        lines += [*_comment(one.text), f"{'' if name in used else '# '}{name} = {one.example}"]
    return "\n".join([*lines, ""])


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text[0].upper() + text[1:] + ".", 100):
        yield f"# {line}"

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

Generated from the code by `make docs`. The file `bough.toml` describes the machines and networks of a
[project](projects.md). [examples/project.toml](../examples/project.toml) shows each setting. The words are
Compose's where Compose has a word. All problems of a file are told at once, with their lines.
"""
_FILE = """\
A file with `image` at the top describes one machine. Such a file is a project of one machine, whose role
is the file's `name`, or `main`. The project has the name of the directory.
"""
_MACHINE = """\
A machine has all [settings of a machine](spec.md), and the following. Relative paths start at the file.
The name of the table is the machine's role.
"""
_DEPENDS = """\
## Order

| condition | the other machine |
|---|---|
| `started` | has answered, and its first boot is set up |
| `healthy` | its health check has passed |
| `completed` | has powered off by itself, after its first boot was set up |

In a list, a machine with a health check must be `healthy`, and a machine without must have `started`. A
machine with profiles may only be a dependency of machines with the same profiles. A named machine starts
with all its dependencies.
"""
_NETWORKS = """\
The uplink is the first card, unless the machine says `uplink = false`. Then come the networks in order. A
machine without `networks` is on the network `default`, if the project has several machines. `networks =
[]`: on none. Machines with `scale` share the name of their table as an alias.
"""
_HEALTH = """\
Exactly one of the first six settings names the check. The guest repeats the check by itself. The first
success makes the machine healthy. After the start period, `retries` failures in a row make the machine
unhealthy. A unit that has failed does so at once. A machine without a health check is healthy when it has
answered. `disable = true` removes the check that a shared part has.
"""
_EXTENDS = """\
## Shared settings

`extends` takes over the settings of a table `[shared.NAME]` or `[machines.NAME]`. Several names apply in
order, the machine's own settings last.

| settings | the machine has |
|---|---|
| `environment`, `limits`, `networks`, `depends_on`, `healthcheck` | the entries of both; its own win |
| lists, such as `ports`, `files`, `commands` | the shared entries, then its own |
| others | its own value |
"""
_VARIABLES = """\
## Variables

Texts may contain variables. Values come from the environment of `bough`, or else from the file `.env`
beside the project's file. Only variables that the file names are read.

| text | stands for |
|---|---|
| `${NAME}` | the value. A variable that is not set is an error |
| `${NAME:-word}` | `word` if the variable is not set or empty; `${NAME-word}`: if not set |
| `${NAME:?message}` | an error with the message if it is not set or empty; `${NAME?message}`: if not set |
| `${NAME:+word}` | `word` if the variable is set and not empty; `${NAME+word}`: if set |
| `$$` | a dollar sign: `$${NAME}` is a variable of the guest's shell, as is `$NAME` |

`.env` has lines like `NAME=value`, with quotes around blanks. Values in `.env` stand for themselves. The
record of the project in BOUGH_HOME contains the values.
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

"""Render the table of settings as documentation: docs/spec.md and examples/machine.toml."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from bough.spec.settings import SETTINGS, Setting

_EXAMPLE_HEAD = """\
# A machine, for `bough create --file machine.toml` or `bough run --file machine.toml -- COMMAND`.
# Only `image` is required. Every other setting is shown with its default or an example.

# The machine's name in `bough list`. Default: generated.
# name = "web"
"""
_PAGE_HEAD = """\
# Settings of a machine

This page lists each setting of a machine, its option, and whether an existing machine can change.
Generated from the code by `make docs`.

A setting has one name everywhere. The name is a key of a [spec file](../examples/machine.toml), a keyword
argument of `hv.create()` and `hv.run()`, and a field of the API. Most settings have an option of
`bough create` and `bough run`. [`bough set`](tasks.md#change-a-machine-that-exists) changes an existing
machine. [`bough up`](projects.md#what-up-does) changes a project's machine, and restarts it if needed.

| column | value | meaning |
|---|---|---|
| change | `never` | fixed when the machine is created |
| | `stopped` | `bough set` changes a stopped machine |
| | `running` | `bough set`, or `bough port` and `bough mount`, change the machine at any time |
| bundle | `kept` | [an imported machine](snapshots.md#hand-over-a-running-machine) has the same value |
| | `dropped` | the imported machine has the default |
| | `here` | the imported machine has the ports on 127.0.0.1 of its host |
| | `refused` | a machine with this setting cannot be exported: the setting names a file of the host |
| boot | `always` | [`bough run`](snapshots.md#bough-run-does-not-boot) boots a machine with this setting |
| | `hardware` | `bough run` forks a booted snapshot with the same value |
| | other | `bough run` forks any booted snapshot with the same hardware |
| process image | `yes` | forks may continue from a [process image](snapshots.md#why-forks-are-fast) |

| setting | meaning | options | change | bundle | boot | process image |
|---|---|---|---|---|---|---|
"""
#: Settings that TOML writes as tables, after all plain keys.
_TABLES = {"limits": "[limits]", "environment": "[environment]"}
_LISTS = {"nics": "[[nics]]", "disks": "[[disks]]", "users": "[[users]]", "files": "[[files]]"}


def render_settings() -> str:
    """Return docs/spec.md."""
    return _PAGE_HEAD + "".join(_row(name, setting) for name, setting in SETTINGS.items())


def render_example() -> str:
    """Return examples/machine.toml: every setting, commented out except `image`."""
    tables = {**_LISTS, **_TABLES}
    plain = [name for name in SETTINGS if name not in tables]
    blocks = [*(_plain(name) for name in plain), *(_table(name, head) for name, head in tables.items())]
    return "\n".join([_EXAMPLE_HEAD, *blocks])


def _row(name: str, setting: Setting) -> str:
    options = ", ".join(f"`{flag.name}`" for flag in setting.flags)
    text = setting.text.replace("|", "\\|")
    image = "yes" if setting.process_image else "no"
    cells = (f"`{name}`", text, options, setting.change, setting.bundle, setting.boot, image)
    return f"| {' | '.join(cells)} |\n"


def _plain(name: str) -> str:
    mark = "" if name == "image" else "# "
    return "\n".join([*_comment(name), f"{mark}{name} = {SETTINGS[name].example}", ""])


def _table(name: str, head: str) -> str:
    lines = [head, *SETTINGS[name].example.splitlines()]
    return "\n".join([*_comment(name), *(f"# {line}" for line in lines), ""])


def _comment(name: str) -> Iterator[str]:
    text = SETTINGS[name].text
    for line in textwrap.wrap(text[0].upper() + text[1:] + ".", 100):
        yield f"# {line}"

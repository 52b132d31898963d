"""Render the table of settings as documentation: docs/spec.md and examples/machine.toml."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from bough.spec.settings import SETTINGS, Setting

_EXAMPLE_HEAD = """\
# A machine, for `bough create --file machine.toml` or `bough run --file machine.toml`.
# Only `image` is required. Every other setting is shown with its default or an example.

# The machine's name in `bough list`. Default: generated.
# name = "web"
"""
_PAGE_HEAD = """\
# Settings of a machine

Generated from the code by `make docs`. The same settings are keys of a [spec file](../examples/machine.toml),
options of `bough create` and `bough run`, keyword arguments of `hv.create()` and `hv.run()`, and fields of
the API.

| column | meaning |
|---|---|
| change | `never`: fixed at creation. `running`: may change at any time |
| bundle | `kept`: travels in a bundle. `dropped`: the importing user decides |
| | `here`: on the new host's loopback. `refused`: names a file of the exporting host |
| boot | `always`: the machine boots. `hardware`: has a booted snapshot of its own |
| | `setup`, `name`, `host`: any booted snapshot of the hardware serves |
| process image | forks may continue from a process image |

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

"""The text of a preparation, to tell whether a kept snapshot was made by it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

#: Values whose text is the same in each process.
_PLAIN = (str, bytes, int, float, bool, type(None))


def source_of(function: Callable[..., Any] | None) -> str:
    """Return the source of the function, of the functions of its module that it uses, and of what it closes
    over. A change of another module is not seen; `--bough-fresh` prepares anew.
    """
    return "\n".join(_parts(function, set())) if function is not None else ""


def _parts(value: Any, seen: set[int]) -> Iterator[str]:
    function = inspect.unwrap(getattr(value, "__func__", value))
    if not inspect.isfunction(function) or id(function) in seen:
        return
    seen.add(id(function))
    try:
        yield inspect.getsource(function)
    except OSError:
        yield repr(function.__code__.co_code)
    used = inspect.getclosurevars(function)
    for name, one in sorted({**used.globals, **used.nonlocals}.items()):
        if isinstance(one, _PLAIN):
            yield f"{name}={one!r}"
        elif isinstance(one, tuple | list) and all(isinstance(part, _PLAIN) for part in one):
            yield f"{name}={one!r}"
        elif getattr(one, "__module__", None) == function.__module__:
            yield from _parts(one, seen)

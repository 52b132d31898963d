"""The health check of a machine: when a machine of a project counts as healthy."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator

from bough.spec import values
from bough.spec.container import Container
from bough.spec.model import GuestPath, GuestPort, Table
from bough.spec.problems import quote, told
from bough.spec.project.settings import HEALTH_SETTINGS
from bough.units import parse_duration

#: The kinds of a check. A check has exactly one.
Kind = Literal["test", "port", "http", "unit", "file", "log"]
KINDS: tuple[Kind, ...] = ("test", "port", "http", "unit", "file", "log")
_MOST_WORDS = 256
_MOST_PATTERN = 1000
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,200}")
_UNIT_TYPES = ("service", "socket", "target", "mount", "timer", "path", "device", "slice", "swap")


def _test(value: Any) -> tuple[str, ...]:
    """Return the words of the command, from a text for the shell or from Compose's list."""
    if isinstance(value, str):
        return ("/bin/sh", "-c", values.shell_command(value))
    words = list(value) if isinstance(value, list | tuple) else []
    if not words or len(words) > _MOST_WORDS or not all(isinstance(word, str) for word in words):
        raise told(f"expected a shell command or a list of words, got {quote(value)}")
    if words[0] == "NONE":
        raise told("'NONE' is not a check", "write disable = true")
    if words[0] == "CMD-SHELL" and len(words) == 2:
        return ("/bin/sh", "-c", values.shell_command(words[1]))
    if words[0] in ("CMD", "CMD-SHELL"):
        words = words[1:] if words[0] == "CMD" else []
    if not words or not words[0] or any("\0" in word or len(word) > 65536 for word in words):
        raise told("expected a program and its arguments, without NUL", 'for example ["pg_isready", "-q"]')
    return tuple(words)


def _http(value: Any) -> str:
    example = "expected an address like 'http://localhost:8080/health'"
    if not isinstance(value, str) or len(value) > 2000 or re.search(r"[\x00-\x20\x7f]", value):
        raise told(f"{example}, got {quote(value)}")
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isascii():
        raise told(f"{example}, got {quote(value)}")
    if parts.username is not None or parts.fragment:
        raise told("an address has no user and no fragment here", "use test with a program like curl")
    return value


def _unit(value: Any) -> str:
    if not isinstance(value, str) or not _UNIT.fullmatch(value):
        raise told(f"expected a unit of systemd like 'nginx.service', got {quote(value)}")
    return value if value.rpartition(".")[2] in _UNIT_TYPES else f"{value}.service"


def _pattern(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > _MOST_PATTERN:
        raise told(f"expected a regular expression of 1 to {_MOST_PATTERN} characters, got {quote(value)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # [[:digit:]] has another meaning in a later Python
            re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise told(f"{quote(value)} is not a regular expression: {error}") from None
    return value


def _seconds(value: Any) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise told(str(error)) from None


def _positive_seconds(value: Any) -> float:
    seconds = _seconds(value)
    if seconds < 0.05:
        raise told(f"expected a time of at least 50ms, got {quote(value)}")
    return seconds


def _retries(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10_000:
        raise told(f"expected a number of failures from 1 to 10000, got {quote(value)}")
    return value


_TEXT = WithJsonSchema({"type": "string"})
_TIME_SCHEMA = WithJsonSchema(
    {
        "anyOf": [{"type": "string"}, {"type": "number"}],
        "description": "seconds, or a text like '500ms', '2m'",
    }
)
_TEST_SCHEMA = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
Test = Annotated[tuple[str, ...], BeforeValidator(_test), _TEST_SCHEMA]
HttpAddress = Annotated[str, BeforeValidator(_http), _TEXT]
Unit = Annotated[str, BeforeValidator(_unit), _TEXT]
Pattern = Annotated[str, BeforeValidator(_pattern), _TEXT]
Wait = Annotated[float, BeforeValidator(_seconds), _TIME_SCHEMA]
Pause = Annotated[float, BeforeValidator(_positive_seconds), _TIME_SCHEMA]
Retries = Annotated[int, BeforeValidator(_retries), WithJsonSchema({"type": "integer", "minimum": 1})]


def _setting(name: str, default: Any) -> Any:
    """Return a field with the description of the table of settings."""
    return Field(default=default, description=HEALTH_SETTINGS[name].text)


class LogCheck(Table):
    """A line of a log: a table, or a pattern alone, which is looked for in the journal.

    Attributes:
        pattern: an extended regular expression of grep, found anywhere in a line.
        unit: only lines of this unit in the journal.
        file: the lines of this file, instead of the journal.
    """

    pattern: Pattern
    unit: Unit | None = None
    file: GuestPath | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"pattern": value} if isinstance(value, str) else value


class HealthCheckSpec(Table):
    """A health check. Exactly one of the kinds is set. Times are in seconds.

    Attributes:
        start_period: time after the machine has answered in which failed checks do not count.
        start_interval: pause between two checks in this time.
    """

    test: Test | None = _setting("test", None)
    port: GuestPort | None = _setting("port", None)
    http: HttpAddress | None = _setting("http", None)
    unit: Unit | None = _setting("unit", None)
    file: GuestPath | None = _setting("file", None)
    log: LogCheck | None = _setting("log", None)
    interval: Pause = _setting("interval", 5.0)
    timeout: Pause = _setting("timeout", 30.0)
    retries: Retries = _setting("retries", 3)
    start_period: Wait = _setting("start_period", 120.0)
    start_interval: Pause = _setting("start_interval", 0.5)

    @property
    def kind(self) -> Kind:
        """Return which of the kinds the check has."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    def describe(self) -> str:
        """Return the check in a few words, for messages: "port 5432", "unit nginx.service"."""
        value = getattr(self, self.kind)
        match value:
            case LogCheck():
                where = f" in {value.file or value.unit}" if value.file or value.unit else ""
                return f"log {value.pattern!r}{where}"
            case ("/bin/sh", "-c", str(command)):
                return f"test {command[:80]!r}"
            case tuple():
                return f"test {' '.join(value)[:80]!r}"
            case _:
                return f"{self.kind} {value}"


def image_check(container: Container) -> HealthCheckSpec | None:
    """Return the HEALTHCHECK of a container image, or None."""
    if container.healthcheck is None:
        return None
    try:
        return HealthCheckSpec.model_validate(dict(container.healthcheck))
    except ValidationError:
        return None  # the image's record is of another version of bough


def check_kinds(data: Any) -> list[tuple[tuple[str, ...], str, str | None]]:
    """Find contradictions between the words of a check: (place, message, hint) of each."""
    if not isinstance(data, Mapping):
        return []
    given = [kind for kind in KINDS if data.get(kind) is not None]
    found: list[tuple[tuple[str, ...], str, str | None]] = []
    if not given:
        found.append(((), "names no check", f"set one of {', '.join(KINDS)}"))
    for second in given[1:]:
        found.append(((second,), f"contradicts {given[0]}: a check has one kind", "remove one of both"))
    log = data.get("log")
    if isinstance(log, Mapping) and log.get("unit") is not None and log.get("file") is not None:
        found.append((("log",), "names a unit and a file", "remove one of both"))
    return found

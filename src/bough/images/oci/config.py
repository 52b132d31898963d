"""The configuration of a container image, read: the OCI image specification's, and Docker's.

The image's author wrote the text. Sizes and counts are bounded, each value has the expected type, and all
problems are told at once. No value is a path or a command of the host.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from bough.errors import BadImage
from bough.spec.container import Container
from bough.spec.problems import quote
from bough.spec.project.healthcheck import HealthCheckSpec
from bough.units import MIB

MOST_BYTES = 4 * MIB
MOST_LAYERS = 1000
_MOST_ENTRIES = 4096
_MOST_TEXT = 128 * 1024
_MOST_WORDS = 4096
_MOST_PORTS = 1024
_MOST_PATH = 4096
_MOST_PROBLEMS = 10
_NANOSECONDS = 1e9
_LEAST_INTERVAL_S = 0.05
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")
_USER = re.compile(r"[^\s:\x00-\x1f\x7f]{0,256}(?::[^\s:\x00-\x1f\x7f]{1,256})?")
_MOST_ID = 2**32 - 2
_SIGNAL_RANGE = re.compile(r"RTMIN(?:\+(\d{1,2}))?|RTMAX(?:-(\d{1,2}))?")
_SIGNALS = {one.name.removeprefix("SIG") for one in signal.Signals} | {"CLD", "POLL", "IO", "PWR", "STKFLT"}
_LAST_SIGNAL = 64
_LAST_TIME_S = 2**31 - 1
#: GOARCH -> architecture of a machine.
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64", "386": "i386", "riscv64": "riscv64"}


@dataclass(frozen=True)
class ImageConfig:
    """A container image's configuration.

    Attributes:
        container: what the image says about its program.
        arch: architecture of a machine; "": the image names none.
        layers: sha256 of each unpacked layer, the lowest first: "sha256:...".
        created_s: when the image was made, in seconds since 1970; 0: the image does not say.
        notes: sentences for the user about parts that a machine does not have.
    """

    container: Container
    arch: str
    layers: tuple[str, ...]
    created_s: int = 0
    notes: tuple[str, ...] = ()


def read_config(text: bytes, reference: str, digest: str) -> ImageConfig:
    """Read a configuration.

    Args:
        reference, digest: the image's full name and its manifest's digest, for the record and for errors.

    Raises:
        BadImage: the text is no configuration of a Linux container image. The message has all problems.
    """
    data = load_json(text, f"the configuration of {reference}")
    reader = _Reader(data)
    config = reader.read(reference, digest)
    if reader.problems:
        told = "; ".join(reader.problems[:_MOST_PROBLEMS])
        raise BadImage(f"the configuration of {reference} is not usable: {told}")
    return config


def load_json(text: bytes, what: str) -> dict[str, Any]:
    """Return an object in JSON from a registry.

    Raises:
        BadImage: the text is too large, or no object.
    """
    if len(text) > MOST_BYTES:
        raise BadImage(f"{what} has {len(text)} bytes, more than the limit of {MOST_BYTES}")
    try:
        data = json.loads(text.decode())
        json.dumps(data, ensure_ascii=False).encode()  # no half of a surrogate pair
    except (ValueError, RecursionError):
        raise BadImage(f"{what} is not valid JSON in UTF-8") from None
    if not isinstance(data, dict):
        raise BadImage(f"{what} is not a JSON object")
    return data


class _Reader:
    """Reads one configuration, and keeps the problems."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.problems: list[str] = []
        self._data = data
        self._notes: list[str] = []
        config = data.get("config")
        if config is not None and not isinstance(config, dict):
            self._tell("config", "an object", config)
        self._config: Mapping[str, Any] = config if isinstance(config, dict) else {}

    def read(self, reference: str, digest: str) -> ImageConfig:
        self._check_system()
        container = Container(
            reference=reference,
            digest=digest,
            entrypoint=self._words("Entrypoint"),
            cmd=self._words("Cmd"),
            env=self._environment(),
            user=self._user(),
            workdir=self._workdir(),
            stop_signal=self._stop_signal(),
            ports=self._ports(),
            volumes=self._volumes(),
            healthcheck=self._healthcheck(),
            labels=self._labels(),
        )
        return ImageConfig(container, self._arch(), self._layers(), self._created_s(), tuple(self._notes))

    def _tell(self, place: str, expected: str, value: Any) -> None:
        self.problems.append(f"{place}: expected {expected}, got {quote(value)}")

    # Values of a known type

    def _text(self, place: str, value: Any, most: int = _MOST_TEXT) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            self._tell(place, "text", value)
            return ""
        if "\0" in value or len(value) > most:
            self.problems.append(f"{place}: expected at most {most} characters without NUL")
            return ""
        return value

    def _texts(self, place: str, value: Any, most: int = _MOST_ENTRIES) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list):
            self._tell(place, "a list of texts", value)
            return []
        if len(value) > most:
            self.problems.append(f"{place}: {len(value)} entries, more than the limit of {most}")
            return []
        return [self._text(f"{place}[{number}]", one) for number, one in enumerate(value)]

    def _keys(self, place: str) -> Iterator[tuple[str, Any]]:
        """Yield names and values of an object in `config`."""
        value = self._config.get(place)
        if value is None:
            return
        if not isinstance(value, dict):
            self._tell(place, "an object", value)
        elif len(value) > _MOST_ENTRIES:
            self.problems.append(f"{place}: {len(value)} entries, more than the limit of {_MOST_ENTRIES}")
        else:
            yield from value.items()

    # The image

    def _check_system(self) -> None:
        system = self._text("os", self._data.get("os"), 100)
        if system not in ("", "linux"):
            self.problems.append(f"the image is for {quote(system)}, and a machine runs images for Linux")

    def _arch(self) -> str:
        name = self._text("architecture", self._data.get("architecture"), 100)
        if name and name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            self.problems.append(f"the image is for the processor {quote(name)}; machines exist for {known}")
        return ARCHITECTURES.get(name, "")

    def _layers(self) -> tuple[str, ...]:
        rootfs = self._data.get("rootfs")
        if not isinstance(rootfs, dict):
            self._tell("rootfs", "an object", rootfs)
            return ()
        digests = self._texts("rootfs.diff_ids", rootfs.get("diff_ids"), MOST_LAYERS)
        for number, digest in enumerate(digests):
            if not _DIGEST.fullmatch(digest):
                self._tell(f"rootfs.diff_ids[{number}]", "sha256: and 64 hexadecimal digits", digest)
        return tuple(digests)

    def _created_s(self) -> int:
        """Return the time of the image. A time that no clock can show counts as none."""
        with contextlib.suppress(ValueError, OverflowError):
            made = datetime.fromisoformat(self._text("created", self._data.get("created"), 100))
            return max(0, min(int(made.timestamp()), _LAST_TIME_S))
        return 0

    # The program

    def _words(self, place: str) -> tuple[str, ...]:
        """Return the words of ENTRYPOINT or CMD. Old Docker images have one text."""
        value = self._config.get(place)
        return tuple(self._texts(place, [value] if isinstance(value, str) else value, _MOST_WORDS))

    def _environment(self) -> dict[str, str]:
        found = {}
        for number, entry in enumerate(self._texts("Env", self._config.get("Env"))):
            name, _, value = entry.partition("=")
            if not name.isprintable() or (not name and entry):
                self.problems.append(f"Env[{number}]: expected NAME=VALUE, got {quote(entry)}")
            elif name:
                found[name] = value
        return found

    def _user(self) -> str:
        user = self._text("User", self._config.get("User"), 600)
        ids = [part for part in user.split(":") if part.isdecimal()]
        if not _USER.fullmatch(user) or any(len(one) > 10 or int(one) > _MOST_ID for one in ids):
            self._tell("User", "a user or user:group, by name or number", user)
        return user

    def _workdir(self) -> str:
        return self._directory("WorkingDir", self._config.get("WorkingDir"))

    def _directory(self, place: str, value: Any) -> str:
        path = self._text(place, value, _MOST_PATH)
        return posixpath.normpath(f"/{path.lstrip('/')}") if path else ""

    def _stop_signal(self) -> str:
        value = self._text("StopSignal", self._config.get("StopSignal"), 40)
        name = value.upper().removeprefix("SIG")
        number = int(name) if name.isdecimal() and len(name) < 4 else 0
        ranged = _SIGNAL_RANGE.fullmatch(name)
        is_real_time = ranged is not None and int(ranged[1] or ranged[2] or 0) <= 30
        if value and name not in _SIGNALS and not is_real_time and not 1 <= number <= _LAST_SIGNAL:
            self._tell("StopSignal", "a signal like SIGTERM or 15", value)
        return name or "TERM"

    def _ports(self) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for name, _ in self._keys("ExposedPorts"):
            match = _PORT.fullmatch(name)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
            if match is None or not 1 <= first <= last <= 65535:
                self._tell("ExposedPorts", "a port like 80/tcp", name)
            elif len(found) + last - first >= _MOST_PORTS:
                self._notes.append(
                    f"the image exposes more than {_MOST_PORTS} ports, and -P leaves out {name}"
                )
            else:
                found |= dict.fromkeys(f"{port}/{match[3] or 'tcp'}" for port in range(first, last + 1))
        return tuple(found)

    def _volumes(self) -> tuple[str, ...]:
        found = [self._directory("Volumes", name) for name, _ in self._keys("Volumes")]
        return tuple(dict.fromkeys(path for path in found if path))

    def _labels(self) -> dict[str, str]:
        return {
            name: self._text(f"Labels[{quote(name)}]", value, MOST_BYTES)
            for name, value in self._keys("Labels")
        }

    # HEALTHCHECK

    def _healthcheck(self) -> dict[str, Any] | None:
        """Return HEALTHCHECK with the keys of a project file's healthcheck."""
        check = dict(self._keys("Healthcheck"))
        words = self._texts("Healthcheck.Test", check.get("Test"), _MOST_WORDS)
        if not words or words[0] == "NONE":
            return None
        if words[0] not in ("CMD", "CMD-SHELL") or len(words) < 2:
            self._tell("Healthcheck.Test", "CMD or CMD-SHELL, and a command", " ".join(words))
            return None
        shell = self._texts("Shell", self._config.get("Shell"), _MOST_WORDS)
        if words[0] == "CMD-SHELL":
            words = ["CMD", *(shell or ["/bin/sh", "-c"]), words[1]]
        found: dict[str, Any] = {"test": words}
        found |= self._times(check)
        retries = check.get("Retries")
        if retries is not None and (not isinstance(retries, int) or isinstance(retries, bool) or retries < 0):
            self._tell("Healthcheck.Retries", "a number", retries)
        elif retries:
            found["retries"] = min(retries, 10_000)
        return found if self._is_check(found) else None

    def _times(self, check: Mapping[str, Any]) -> dict[str, float]:
        """Return the times, which are in nanoseconds. 0 means Docker's default; bough has its own."""
        names: dict[str, tuple[str, Callable[[float], float]]] = {
            "Interval": ("interval", lambda seconds: max(seconds, _LEAST_INTERVAL_S)),
            "Timeout": ("timeout", lambda seconds: max(seconds, _LEAST_INTERVAL_S)),
            "StartPeriod": ("start_period", float),
            "StartInterval": ("start_interval", lambda seconds: max(seconds, _LEAST_INTERVAL_S)),
        }
        found = {}
        for name, (key, bounded) in names.items():
            value = check.get(name)
            if value is None or value == 0:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
                self._tell(f"Healthcheck.{name}", "a number of nanoseconds", value)
            else:
                found[key] = bounded(value / _NANOSECONDS)
        return found

    def _is_check(self, found: Mapping[str, Any]) -> bool:
        try:
            HealthCheckSpec.model_validate(dict(found))
        except ValidationError:
            self.problems.append("Healthcheck: not a usable health check")
            return False
        return True

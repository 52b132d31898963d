"""The configuration of apt: sources of packages, keys, and pinned versions."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bough.errors import InvalidInput

_URI = re.compile(r"(?:https?|file)://[A-Za-z0-9.:\[\]_/~%+@=-]{1,500}")


class Source(Protocol):
    """A further apt source of a recipe. See bough.spec.recipe.SourceSpec."""

    @property
    def name(self) -> str: ...
    @property
    def uri(self) -> str: ...
    @property
    def suites(self) -> tuple[str, ...]: ...
    @property
    def components(self) -> tuple[str, ...]: ...
    @property
    def types(self) -> tuple[str, ...]: ...
    @property
    def key(self) -> str | None: ...


@dataclass(frozen=True)
class Mirrors:
    """The archives from which a build gets Debian's packages. None: the archive's own.

    Attributes:
        main: mirror of the suite and its updates.
        security: mirror of the security updates; "none": leave them out.
    """

    main: str | None = None
    security: str | None = None


DEFAULT_MIRRORS = Mirrors()


def parse_mirrors(
    main: str | None, security: str | None, names: tuple[str, str] = ("--mirror", "--security-mirror")
) -> Mirrors:
    """Check the addresses of the mirrors and remove slashes at the end.

    Args:
        names: of the two settings, for the message.

    Raises:
        InvalidInput: an address is not usable.
    """
    for name, value in zip(names, (main, security), strict=True):
        if value is not None and not _URI.fullmatch(value) and (name, value) != (names[1], "none"):
            raise InvalidInput(
                f"{name}: expected an address like http://mirror.example/debian, got {value[:100]!r}"
            )
    return Mirrors(main and main.rstrip("/"), security and security.rstrip("/"))


def find_mirrors(settings: Path) -> Mirrors:
    """Return the mirrors for builds that no command asks for: `mirror` and `security_mirror` in the home's
    settings.toml. BOUGH_MIRROR and BOUGH_SECURITY_MIRROR in the service's environment override them.

    Raises:
        InvalidInput: an address is not usable, or the file cannot be read.
    """
    try:
        told = tomllib.loads(settings.read_text())
    except FileNotFoundError:
        told = {}
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{settings} cannot be read: {error}", hint="repair the file, or remove it"
        ) from error
    main, security = (
        os.environ.get(f"BOUGH_{name.upper()}") or (str(told[name]) if name in told else None)
        for name in ("mirror", "security_mirror")
    )
    return parse_mirrors(main, security, ("mirror", "security_mirror"))


def render_source(source: Source, *, key_inside: bool) -> str:
    """Return a file of deb822 sources: one stanza for each suite and type.

    new_sources.awk later removes the stanzas that the guest already has.

    Args:
        key_inside: put the key into the stanza; needs apt >= 2.3.10. Otherwise the key has its own file.
    """
    kinds = [(suite, type) for suite in source.suites for type in source.types]
    return "\n".join(_render_stanza(source, suite, type, key_inside) for suite, type in kinds)


def _render_stanza(source: Source, suite: str, type: str, key_inside: bool) -> str:
    lines = [f"Types: {type}", f"URIs: {source.uri}", f"Suites: {suite}"]
    if not suite.endswith("/"):  # sources.list(5): no components after an exact path
        lines.append(f"Components: {' '.join(source.components)}")
    if source.key is not None and key_inside:
        lines += ["Signed-By:", *(f" {line or '.'}" for line in source.key.splitlines())]
    elif source.key is not None:
        lines.append(f"Signed-By: {key_path(source)}")
    return "\n".join(lines) + "\n"


def key_path(source: Source) -> str:
    return f"/etc/apt/keyrings/{source.name}.asc"


def source_path(source: Source) -> str:
    return f"/etc/apt/sources.list.d/{source.name}.sources"


def source_files(sources: Sequence[Source], ending: str = "") -> dict[str, str]:
    """Return the files that remain in the guest: path -> content.

    Args:
        ending: appended to the names of the sources. apt ignores such files.
    """
    files = {source_path(source) + ending: render_source(source, key_inside=False) for source in sources}
    return files | {key_path(source): source.key for source in sources if source.key is not None}


#: For ADD_SOURCES: the ending of new sources, and the path of new_sources.awk in the guest.
ASKED = ".asked"
FILTER_PATH = "/run/bough-new-sources.awk"
#: Shell commands: add the sources that end in ASKED, unless the guest already has them.
ADD_SOURCES = f"""
apt-get indextargets --no-release-info --format '$(TARGET_OF) $(REPO_URI) $(RELEASE) $(COMPONENT)' \\
    > {FILTER_PATH}.known || exit 1
for asked in /etc/apt/sources.list.d/*{ASKED}; do
    new=${{asked%{ASKED}}}
    awk -f {FILTER_PATH} {FILTER_PATH}.known "$asked" > "$new" && rm "$asked" || exit 1
    [ -s "$new" ] || rm "$new"
done
"""


PINS_PATH = "/etc/apt/preferences.d/00-bough-lock"


def render_pins(versions: Mapping[str, str]) -> str:
    """Return preferences (apt_preferences(5)) that allow only these versions, even if older."""
    pins = [
        f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n"
        for name, version in sorted(versions.items())
    ]
    return "\n".join([*pins, "Package: *\nPin: release *\nPin-Priority: -1\n"])

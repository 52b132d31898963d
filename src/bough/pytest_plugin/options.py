"""The plugin's options, settings of the ini file and marker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

MARKER = (
    "bough(machine, project=..., **settings): the image or spec file of `bough_machine`, the file of "
    "`bough_project`, and settings of the spec, like memory='512MiB'"
)
When = Literal["never", "failed", "always"]


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("bough", "machines and projects for tests, by bough")
    group.addoption(
        "--bough-keep",
        choices=("never", "failed", "always"),
        default="never",
        help="keep the forks of tests: their machines run on until you delete them",
    )
    group.addoption(
        "--bough-bundle",
        choices=("never", "failed"),
        default="never",
        help="export the running machines of a failed test, for a colleague to `bough import`",
    )
    group.addoption("--bough-artifacts", metavar="DIR", help="directory for what failed tests leave")
    group.addoption(
        "--bough-report", metavar="FILE", help="HTML page of the run; default: report.html of the artifacts"
    )
    group.addoption(
        "--bough-fresh", action="store_true", help="prepare the snapshots anew that forks start from"
    )
    group.addoption(
        "--bough-forks",
        type=int,
        metavar="N",
        help="machines that live at once on this host; default: by its processors and memory",
    )
    parser.addini("bough_machine", "image or spec file of the fixture bough_machine", default="")
    parser.addini("bough_project", "file of the fixture bough_project", default="bough.toml")
    parser.addini("bough_scope", "scope of the fixtures bough_machine and bough_project", default="function")
    parser.addini("bough_artifacts", "directory for what failed tests leave", default="bough-artifacts")


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Attributes:
        artifacts: directory of what failed tests leave. `report`: the HTML page of the run.
        forks: machines that live at once; None: by the host.
    """

    artifacts: Path
    report: Path
    keep: When
    bundle: When
    fresh: bool
    forks: int | None

    @classmethod
    def of(cls, config: pytest.Config) -> Options:
        option = config.option
        artifacts = config.rootpath / (option.bough_artifacts or config.getini("bough_artifacts"))
        if option.bough_forks is not None and option.bough_forks < 1:
            raise pytest.UsageError("--bough-forks needs a number of 1 or more")
        return cls(
            artifacts=artifacts,
            report=config.rootpath / option.bough_report
            if option.bough_report
            else artifacts / "report.html",
            keep=option.bough_keep,
            bundle=option.bough_bundle,
            fresh=option.bough_fresh,
            forks=option.bough_forks,
        )


SCOPES = ("function", "class", "module", "package", "session")


def scope_of(fixture_name: str, config: pytest.Config) -> Any:
    """Return the scope of the plugin's own fixtures, from the ini file. Raises UsageError."""
    scope = config.getini("bough_scope")
    if scope not in SCOPES:
        raise pytest.UsageError(f"bough_scope is {scope!r}, and has to be one of {', '.join(SCOPES)}")
    return scope


@dataclass(frozen=True)
class Source:
    """What a fork is made of: an image or a file, with the settings that override the file.

    Attributes:
        base: directory of relative paths.
    """

    name: str
    base: Path
    settings: dict[str, Any]

    @property
    def is_file(self) -> bool:
        return self.name.endswith(".toml")

    @property
    def file(self) -> Path:
        return self.base / self.name


def machine_source(request: pytest.FixtureRequest) -> Source:
    """Return the source of `bough_machine`: of the nearest marker, otherwise of the ini file."""
    marker = request.node.get_closest_marker("bough")
    given = dict(marker.kwargs) if marker is not None else {}
    given.pop("project", None)
    named = given.pop("machine", None) or (marker.args[0] if marker is not None and marker.args else None)
    if named is not None:
        return Source(str(named), _directory_of(request), given)
    ini = request.config.getini("bough_machine")
    if not ini:
        pytest.fail(
            "bough_machine needs an image or a spec file\n\n"
            "hint: set `bough_machine = debian:12` in the ini file, or mark the test: "
            "@pytest.mark.bough('debian:12', memory='512MiB')",
            pytrace=False,
        )
    return Source(ini, ini_directory(request.config), given)


def project_source(request: pytest.FixtureRequest) -> Source:
    """Return the source of `bough_project`: of the nearest marker, otherwise of the ini file."""
    marker = request.node.get_closest_marker("bough")
    named = marker.kwargs.get("project") if marker is not None else None
    if named is not None:
        return Source(str(named), _directory_of(request), {})
    return Source(request.config.getini("bough_project"), ini_directory(request.config), {})


def _directory_of(request: pytest.FixtureRequest) -> Path:
    """Return the directory of the test's file; of the ini file for a fixture of the whole session."""
    if request.scope in ("function", "class", "module"):
        return request.path.parent
    return ini_directory(request.config)


def ini_directory(config: pytest.Config) -> Path:
    """Return the directory of the ini file, or the root of the tests."""
    return config.inipath.parent if config.inipath is not None else config.rootpath

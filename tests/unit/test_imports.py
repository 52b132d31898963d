"""Check that imports follow the arrows of docs/design.md, which point down.

An import inside a function counts like an import at the top: a lazy arrow is an arrow, too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "bough"

ROOT = {
    "errors",
    "version",
    "units",
    "home",
    "paths",
    "progress",
    "storage",
    "bundle",
    "project_bundle",
    "tasks",
    "progress_watch",
    "serving",
    "hangup",
    "guest_checks",
}
BOTTOM = ROOT | {"spec"}

#: Permitted imports of each package, or module of the root. Every package may import itself.
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(ROOT, ROOT),
    "spec": ROOT,
    "guest": BOTTOM,
    "networks": BOTTOM,
    "qemu": BOTTOM | {"networks"},  # a process starts together with the sockets of its NICs
    # A file server runs in the same jail as QEMU, at the other end of the agent's sessions.
    "mounts": BOTTOM | {"guest", "networks", "qemu"},
    "artifacts": BOTTOM,
    # An image contains the agent. The conversion of an image runs in the same jail as QEMU.
    "images": BOTTOM | {"artifacts", "guest", "networks", "qemu"},
    # Two disks are compared in a jail like that of an import.
    "differences": BOTTOM | {"guest", "networks", "qemu", "images"},
    "machines": BOTTOM | {"guest", "networks", "qemu", "mounts", "images"},
    "snapshots": BOTTOM | {"artifacts", "guest", "networks", "qemu", "mounts", "images", "machines"},
    "projects": BOTTOM | {"guest", "networks", "qemu", "mounts", "images", "machines"},
    "forks": BOTTOM | {"guest", "networks", "qemu", "mounts", "images", "machines", "snapshots"},
    "audit": BOTTOM | {"guest", "networks", "qemu", "mounts", "images", "machines", "snapshots", "projects"},
    "hypervisor": BOTTOM
    | {"guest", "networks", "qemu", "mounts", "images", "machines", "snapshots", "projects", "forks"}
    | {"artifacts", "audit", "differences"},
    "contract": {"errors"},
    "service": BOTTOM
    | {"contract"}
    | {"guest", "networks", "qemu", "mounts", "images", "machines", "snapshots", "projects", "forks"}
    | {"hypervisor"},
    "client": BOTTOM | {"contract"},
    "cli": BOTTOM | {"client", "contract"},
    "pytest_plugin": BOTTOM | {"client", "contract"},
    # `import bough` is the Python API.
    "__init__": BOTTOM | {"client"},
    "__main__": {"cli"},
}

#: Copied into the guest, which has only Python's standard library.
INSIDE_THE_GUEST = ("guest/agent.py", "guest/wire.py")


def owner(path: Path) -> str:
    """Return the package or root module of the file: `qemu` for qemu/qmp.py, `paths` for paths.py."""
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every import in the file, relative imports resolved."""
    package = ("bough", *path.relative_to(SOURCE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            stem = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*stem, *([node.module] if node.module else [])))
            # `from bough import x` names a module of bough; `from bough.x import y` may not.
            for name in [f"{module}.{alias.name}" for alias in node.names] if module == "bough" else [module]:
                yield node.lineno, name


def arrows(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and target of every arrow out of the file's own package."""
    for line, name in imported_names(path):
        parts = name.split(".")
        if parts[0] != "bough":
            continue
        target = parts[1] if len(parts) > 1 else "__init__"
        if target not in MAY_IMPORT:
            target = "__init__"  # `from bough import connect`
        if target != owner(path):
            yield line, target


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_arrow_points_up(path: Path) -> None:
    assert owner(path) in MAY_IMPORT, f"{owner(path)} has no place in MAY_IMPORT of {__file__} yet"
    wrong = [
        f"{path}:{line}: {owner(path)} may not import {target}"
        for line, target in arrows(path)
        if target not in MAY_IMPORT[owner(path)]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", INSIDE_THE_GUEST)
def test_the_agent_needs_only_the_standard_library(name: str) -> None:
    own = {Path(module).stem for module in INSIDE_THE_GUEST}
    for line, imported in imported_names(SOURCE / name):
        top, *rest = imported.split(".")
        # A guest has only bough.guest: `from bough.guest import wire`.
        is_own = top in own or (top == "bough" and rest[:1] == ["guest"])
        assert is_own or top in sys.stdlib_module_names, f"{name}:{line}: {imported} is not in a guest"


def test_lazy_and_relative_imports_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    upward = tmp_path / "qemu" / "argv.py"
    upward.parent.mkdir()
    upward.write_text(
        "def render():\n    from bough.machines import record\n    from ..hypervisor import Hypervisor\n"
        "    from .. import client\n    import bough.cli.main\n    from bough import service, connect\n"
    )
    assert [target for _, target in arrows(upward)] == [
        "machines", "hypervisor", "client", "cli", "service", "__init__",
    ]  # fmt: skip


def imported_files(path: Path) -> set[str]:
    """Return the files of bough that the file imports; an import for type checks counts."""
    found = set()
    package = ("bough", *path.relative_to(SOURCE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            stem = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*stem, *([node.module] if node.module else [])))
            # `from bough.guest import wire` imports the file wire.py, not a name of the package.
            found |= {file_of(f"{module}.{alias.name}") or file_of(module) for alias in node.names}
    return {file for file in found if file is not None and file != str(path.relative_to(SOURCE))}


def file_of(module: str) -> str | None:
    """Return the file of a module, relative to SOURCE; None if the module is not a file of bough."""
    top, *rest = module.split(".")
    place = SOURCE.joinpath(*rest)
    candidates = (place.with_suffix(".py"), place / "__init__.py") if rest else (place / "__init__.py",)
    file = next((file for file in candidates if file.is_file()), None)
    return str(file.relative_to(SOURCE)) if top == "bough" and file is not None else None


def find_circles(arrows: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the groups of files that reach each other."""
    reach = {file: reachable(file, arrows) for file in arrows}
    return {
        frozenset(other for other in reach[file] if file in reach[other])
        for file in arrows
        if file in reach[file]
    }


def reachable(file: str, arrows: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = list(arrows[file])
    while todo:
        if (one := todo.pop()) not in found:
            found.add(one)
            todo += arrows[one]
    return found


def test_no_files_import_each_other() -> None:
    circles = find_circles({str(path.relative_to(SOURCE)): imported_files(path) for path in FILES})
    assert not circles, f"circles of files; put a Protocol beside the user of the type: {circles}"


def test_circles_are_found() -> None:
    arrows = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set(), "f": {"f"}}
    assert find_circles(arrows) == {frozenset("abc"), frozenset("f")}


def test_imports_for_type_checks_and_of_submodules_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    for name in ("guest/__init__.py", "guest/wire.py", "guest/session.py", "__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    file = tmp_path / "guest" / "channel.py"
    file.write_text(
        "from bough.guest import wire\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from bough.guest.session import Session\n    from . import channel\n"
        "def late():\n    import bough\n"
    )
    assert imported_files(file) == {"guest/wire.py", "guest/session.py", "__init__.py"}


def test_the_tree_in_the_design_names_each_package() -> None:
    page = (SOURCE.parents[1] / "docs/design.md").read_text()
    tree = page[page.index("src/bough/\n") : page.index("\ntests/ bench/")]
    packages = {path.parent.name for path in SOURCE.rglob("*/__init__.py")} - {"bough"}
    lines = re.findall(r"^ {2,4}([a-z_]+)/ ", tree, re.MULTILINE)
    assert set(lines) <= packages, "docs/design.md draws a package that does not exist"
    missing = sorted(name for name in packages if f"{name}/" not in tree)
    assert not missing, "docs/design.md does not draw these packages"


def test_no_arrow_goes_round() -> None:
    for one, others in MAY_IMPORT.items():
        for other in others - {one}:
            assert one in ROOT or one not in MAY_IMPORT.get(other, set()), f"{one} <-> {other}"

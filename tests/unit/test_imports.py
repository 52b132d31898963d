"""Check that imports follow the arrows of docs/design.md, which point down.

An import inside a function counts like an import at the top: a lazy arrow is an arrow, too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "bough"

ROOT = {
    "errors",
    "units",
    "home",
    "paths",
    "progress",
    "storage",
    "bundle",
    "tasks",
    "progress_watch",
    "serving",
    "hangup",
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
    # An image contains the agent. The conversion of an image runs in the same jail as QEMU.
    "images": BOTTOM | {"guest", "networks", "qemu"},
    "machines": BOTTOM | {"guest", "networks", "qemu", "mounts", "images"},
    "snapshots": BOTTOM | {"guest", "networks", "qemu", "mounts", "images", "machines"},
    "audit": BOTTOM | {"guest", "networks", "qemu", "mounts", "images", "machines", "snapshots"},
    "hypervisor": BOTTOM
    | {"guest", "networks", "qemu", "mounts", "images", "machines", "snapshots", "audit"},
    "service": BOTTOM
    | {"guest", "networks", "qemu", "mounts", "images", "machines", "snapshots", "hypervisor"},
    "client": BOTTOM,
    "cli": BOTTOM | {"client"},
    "web": BOTTOM | {"client"},
    "pytest_plugin": BOTTOM | {"client"},
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
        if target == "__version__":
            continue  # a string in the root file; the import loads nothing else
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


def test_no_arrow_goes_round() -> None:
    for one, others in MAY_IMPORT.items():
        for other in others - {one}:
            assert one in ROOT or one not in MAY_IMPORT.get(other, set()), f"{one} <-> {other}"

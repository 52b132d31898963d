"""Write the pages and examples that are made from the code."""

from pathlib import Path

from bough.cli.reference import render_reference
from bough.machines.state import render_states
from bough.spec.project import reference as project
from bough.spec.reference import render_example, render_settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "docs/cli.md": render_reference,
    "docs/project-file.md": project.render_page,
    "docs/spec.md": render_settings,
    "docs/states.md": render_states,
    "examples/machine.toml": render_example,
    "examples/project.toml": project.render_example,
}

if __name__ == "__main__":
    for name, render in PAGES.items():
        (ROOT / name).write_text(render())
        print(f"wrote {name}")

"""Write the pages of docs/ that are made from the code."""

from pathlib import Path

from bough.cli.reference import render_reference

DOCS = Path(__file__).resolve().parents[1] / "docs"

(DOCS / "cli.md").write_text(render_reference())
print(f"wrote {DOCS / 'cli.md'}")

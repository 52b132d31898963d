"""Draw docs/plots/*.svg from results of `make bench`: python scripts/make_plots.py bench/results/*.json

Later files override earlier ones. Only this script needs matplotlib: pip install matplotlib
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

TARGET = Path(__file__).resolve().parent.parent / "docs" / "plots"


def main() -> None:
    curves: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
    for path in map(Path, sys.argv[1:]):
        saved = json.loads(path.read_text())
        for name, curve in saved.get("curves", {}).items():
            curves[name] = (curve, saved["host"])
    if not curves:
        sys.exit("error: no curve in those files\n\nhint: make bench ONLY=fork")
    TARGET.mkdir(exist_ok=True)
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bough", "font.size": 9})
    for name, (curve, host) in sorted(curves.items()):
        print(draw(name, curve, host))


def draw(name: str, curve: dict[str, Any], host: dict[str, str]) -> Path:
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    xs, ys = zip(*curve["points"], strict=True)
    axes.plot(xs, ys, marker="o", color="#2f6f4f")
    axes.set(title=name, xlabel=curve["x"], ylabel=curve["y"], ylim=(0, max(ys) * 1.15))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # The layout keeps room for a figure's own label: the caption does not overlap the axis.
    figure.supxlabel(f"{host['processor']}, QEMU emulating", x=0.99, ha="right", fontsize=6, color="gray")
    path = TARGET / f"{name.replace(' ', '-')}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


if __name__ == "__main__":
    main()

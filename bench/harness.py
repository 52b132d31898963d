"""Run bough and a peer in turns on the same machine, and compare their medians.

A host is never quite idle: in turns, a disturbance affects both. A benchmark is a module with `ABOUT` and
`run(bench)`. It calls `bench.in_turns()` for each pair of things that do the same job. A ratio below 1 means
that bough is faster.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

Work = Callable[[], object]


@dataclass(frozen=True)
class Series:
    """The seconds of each round."""

    what: str
    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        times = f"{_time(self.median):>9}  ({_time(min(self.rounds))} .. {_time(max(self.rounds))})"
        return f"{times:<34} {self.what}"


@dataclass(frozen=True)
class Comparison:
    name: str
    ours: Series
    peer: Series | None

    @property
    def ratio(self) -> float | None:
        return self.ours.median / self.peer.median if self.peer else None

    def __str__(self) -> str:
        lines = [self.name, f"  ours  {self.ours}"]
        if self.peer:
            lines += [f"  peer  {self.peer}", f"  ratio {self.ratio:>9.2f}"]
        return "\n".join(lines)


@dataclass
class Bench:
    """The results so far; each result is printed at once."""

    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)

    def in_turns(
        self,
        name: str,
        *,
        ours: Work,
        peer: Work | None,
        what: tuple[str, str],
        rounds: int,
        warm_ups: int = 0,
    ) -> Comparison:
        """Run both `rounds` times, alternating. A work that returns a float has timed itself."""
        works = [work for work in (ours, peer) if work]
        times: list[list[float]] = [[] for _ in works]
        for number in range(warm_ups + rounds):
            for index, work in enumerate(works):
                taken = _timed(work)
                if number >= warm_ups:
                    times[index].append(taken)
        comparison = Comparison(
            name, Series(what[0], times[0]), Series(what[1], times[1]) if len(times) == 2 else None
        )
        self.comparisons.append(comparison)
        print(comparison, flush=True)
        return comparison

    def note(self, text: str) -> None:
        """Print and keep a single figure, or the reason for an omission."""
        self.notes.append(text)
        print(f"note: {text}", flush=True)

    def curve(self, name: str, x: str, y: str, points: list[tuple[float, float]]) -> None:
        """Add points of one figure as a function of another; `scripts/make_plots.py` draws the curve."""
        self.curves.setdefault(name, {"x": x, "y": y, "points": []})["points"] += points
        for at, figure in points:
            print(f"{name}: {figure:9.2f} {y} at {at:g} {x}", flush=True)

    def save(self, facts: dict[str, str]) -> Path:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
        measured = [{**asdict(each), "ratio": each.ratio} for each in self.comparisons]
        saved = {"host": facts, "measured": measured, "notes": self.notes, "curves": self.curves}
        path.write_text(json.dumps(saved, indent=1) + "\n")
        return path


def host_facts() -> dict[str, str]:
    """Return facts about this host, for the results."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "memory": f"{memory_kib / 1024**2:.1f} GiB",
        "system": f"{platform.freedesktop_os_release().get('PRETTY_NAME', '?')}, Linux {platform.release()}",
        "qemu": first_line("qemu-system-" + platform.machine(), "--version"),
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.2f} before the first round",
    }


def first_line(*argv: str) -> str:
    """Return the first line of a program's output; "" if the program is missing or fails."""
    try:
        output = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return output.splitlines()[0] if output else ""


def run_quietly(*argv: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command that must succeed; print its output only if it fails."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}")


def _timed(work: Work) -> float:
    started = time.perf_counter()
    own = work()
    return own if isinstance(own, float) else time.perf_counter() - started


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"

"""Run the benchmarks (`make bench`, `make bench ONLY=exec`) and print figures of bough and a peer."""

from __future__ import annotations

import contextlib
import importlib
import sys

import bough
from bench.harness import Bench, host_facts
from bough.errors import ServiceUnavailable

ALL = (
    *("cli", "exec", "copy", "ssh", "mounts", "boot", "image", "imports", "many"),
    *(
        "pause",
        "fork",
        "prewarm",
        "suspend",
        "run",
        "chains",
        "differences",
        "networks",
        "network_uplink",
        "projects",
        "oci",
        "containers",
        "foreign",
    ),
)


def main() -> None:
    wanted = sys.argv[1:] or list(ALL)
    unknown = [name for name in wanted if name not in ALL]
    if unknown:
        sys.exit(f"error: no benchmark {', '.join(unknown)}; choose from {', '.join(ALL)}")
    with contextlib.suppress(ServiceUnavailable):
        bough.connect(start=False).shutdown()  # a running service may have other code; the next has this code
    facts = host_facts()
    for name, fact in facts.items():
        print(f"{name:>10}: {fact}")
    bench = Bench()
    for name in wanted:
        module = importlib.import_module(f"bench.{name}")
        print(f"\n== {name}: {module.ABOUT}", flush=True)
        module.run(bench)
    print(f"\nwritten to {bench.save(facts)}")


if __name__ == "__main__":
    main()

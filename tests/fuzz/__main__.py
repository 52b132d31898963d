"""Run targets under atheris, coverage-guided: python -m tests.fuzz TARGET... [--seconds 60] (`pip install
atheris`)

Input that reaches new code is kept in tests/fuzz/cases/TARGET.txt, one case a line, in hexadecimal. Input
that breaks something is left in the working directory as TARGET-crash-*; add it to that file together with
the repair.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import CASES, read_cases

MOST_CASES = 300


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="+")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    for target in options.target:
        with tempfile.TemporaryDirectory() as directory:
            found = Path(directory)
            before = read_cases(target)
            for number, case in enumerate(before):
                (found / f"case-{number}").write_bytes(case)
            _run(target, f"-max_total_time={options.seconds}", directory)
            new = {path.read_bytes() for path in found.iterdir()} - set(before)
        kept = before + sorted(new, key=lambda case: (len(case), case))[: MOST_CASES - len(before)]
        (CASES / f"{target}.txt").write_text("".join(f"{case.hex()}\n" for case in kept if case))
        print(f"{target}: {len(kept)} cases kept")


def _run(target: str, *arguments: str) -> None:
    words = [sys.executable, "-m", "tests.fuzz.guided", target, *arguments]
    more = ["-max_len=2048", "-print_final_stats=1", f"-artifact_prefix={Path.cwd()}/{target}-"]
    subprocess.run([*words, *more], check=True)


if __name__ == "__main__":
    main()

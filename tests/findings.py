"""Report tests that fail beside others and pass alone. Each is a finding, with the artifacts of its failure.

python -m tests.findings keep    after all tests: put the artifacts of failed tests aside, print their names
python -m tests.findings tell    after a second run of those tests, alone: print the names of tests that
passed
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARTIFACTS = ROOT / "test-artifacts"
#: Directory with the artifacts of each test that failed beside others, for the last run only.
BESIDE_OTHERS = "failed-beside-others"
_LIST = "tests.json"


def place_of(test: str, artifacts: Path = ARTIFACTS) -> Path:
    """Return the directory for the artifacts of a failed test; `test` is its id in pytest."""
    return artifacts / test.replace("/", ".").replace("::", ".")[-120:]


def keep(failed: list[str], artifacts: Path = ARTIFACTS) -> None:
    """Put the artifacts of `failed` tests aside before the tests run again."""
    aside = artifacts / BESIDE_OTHERS
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for test in failed:
        if place_of(test, artifacts).exists():
            place_of(test, artifacts).rename(place_of(test, aside))
    (aside / _LIST).write_text(json.dumps(failed))


def tell(failed_again: list[str], artifacts: Path = ARTIFACTS) -> list[str]:
    """Return lines about the kept tests that have passed now."""
    aside = artifacts / BESIDE_OTHERS
    passed = [test for test in json.loads((aside / _LIST).read_text()) if test not in failed_again]
    if not passed:
        return []
    count = "1 test" if len(passed) == 1 else f"{len(passed)} tests"
    lines = [f"FINDING: {count} failed beside others and passed alone. Load explains it, or a race: look."]
    for test in passed:
        place = place_of(test, aside)
        lines += [f"  {test}", f"    kept: {place}" if place.exists() else "    nothing was kept"]
    return lines


def _last_failed() -> list[str]:
    return list(json.loads((ROOT / ".pytest_cache/v/cache/lastfailed").read_text()))


def main(what: str) -> None:
    if what == "keep":
        keep(_last_failed())
        print("\n".join(_last_failed()))
    else:
        print("\n".join(tell(_last_failed())))


if __name__ == "__main__":
    main(sys.argv[1])

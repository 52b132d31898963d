"""Fuzz the code that reads a hostile guest's data: see targets.py. Run it with `python -m tests.fuzz`."""

from pathlib import Path

CASES = Path(__file__).parent / "cases"


def read_cases(target: str) -> list[bytes]:
    path = CASES / f"{target}.txt"
    return [bytes.fromhex(line) for line in path.read_text().split()] if path.exists() else []

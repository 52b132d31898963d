"""What a hostile guest can send, made up by a fuzzer: see targets.py. `python -m tests.fuzz` runs it."""

from pathlib import Path

CASES = Path(__file__).parent / "cases"


def read_cases(target: str) -> list[bytes]:
    path = CASES / f"{target}.txt"
    return [bytes.fromhex(line) for line in path.read_text().split()] if path.exists() else []

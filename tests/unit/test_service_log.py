"""The bound on the service's log while the service runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, sys
from pathlib import Path
import bough.service.log as log
logging.basicConfig(level=logging.INFO, handlers=[log.BoundedStream(Path(sys.argv[1]), limit_bytes=20_000)])
for number in range(2000):
    logging.info("line %d", number)
logging.info("x" * 1_000_000)
print("to standard output", flush=True)
logging.info("the last one")
"""


def run(log: Path, named: Path) -> None:
    with log.open("ab") as stream:
        subprocess.run([sys.executable, "-c", SCRIPT, named], stdout=stream, stderr=stream, check=True)


def test_the_log_is_bounded_and_keeps_the_end(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    run(log, log)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["service.log", "service.log.1"]
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert max(sizes) < 20_000 + 70_000, sizes
    text = log.read_text()
    assert "the last one" in text
    assert "to standard output" in text
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_stream_that_is_not_the_log_is_left_alone(tmp_path: Path) -> None:
    other, log = tmp_path / "journal", tmp_path / "service.log"
    log.write_text("of another service\n")
    run(other, log)
    assert "line 0" in other.read_text()
    assert log.read_text() == "of another service\n"

"""The API against its OpenAPI document: generated requests must not break the service."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bough.client import connect
from bough.paths import Home

schemathesis = pytest.importorskip(
    "schemathesis", reason="not in every environment: pip install schemathesis"
)

#: Calls that would end the service, fetch packages or files, or probe the host for seconds each time.
LEFT_OUT = ("/v1/shutdown", "/v1/images/build", "/v1/images/import", "/v1/doctor", "/v1/doctor/store")
#: Calls that wait as long as the request says.
WAITING = ("wait", "stop", "start", "restart")


@dataclass(frozen=True)
class Service:
    url: str
    token: str
    root: Path


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Yield a service on TCP with one machine, box, whose disk is blank."""
    root = Path(tempfile.mkdtemp(prefix="bough-test-", dir="/var/tmp"))
    root.chmod(0o711)
    home = Home.at(root / "home")
    with (root / "log").open("wb") as log:
        words = [sys.executable, "-m", "bough.service", "--home", str(home.root), "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(words, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not (found := re.search(r"http://127.0.0.1:\d+", (root / "log").read_text())):
            assert process.poll() is None, (root / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        blank = root / "blank.raw"
        with blank.open("wb") as file:
            file.truncate(16 << 20)
        hypervisor = connect(home.root, start=False)
        hypervisor.import_image(blank, name="blank", format="raw")
        hypervisor.create("blank", name="box", memory="64MiB")
        yield Service(found[0], home.token.read_text().strip(), root)
        for machine in hypervisor.machines():
            machine.delete(force=True)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        shutil.rmtree(root)


def run(service: Service, *more: str) -> int:
    """Return the number of requests; all had a status below 500."""
    config = service.root / "schemathesis.toml"
    config.write_text('[parameters]\n"path.reference" = "box"\n' if "--box" in more else "")
    words = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    words += [f"{service.url}/v1/openapi.json", "-H", f"Authorization: Bearer {service.token}"]
    words += ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--continue-on-failure"]
    words += ["--request-timeout", "30", "--warnings", "off", "--generation-database", "none"]
    words += [word for path in LEFT_OUT for word in ("--exclude-path", path)]
    words += [word for word in more if word != "--box"]
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [str(program), *words[3:]], capture_output=True, text=True, check=False, timeout=280, cwd=service.root
    )
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-6000:]
    log = (service.root / "log").read_text()
    assert "Traceback" not in log, log[-4000:]
    generated = re.search(r"([\d,]+) generated", done.stdout)
    return int(generated[1].replace(",", "")) if generated else 0


def test_no_request_breaks_it(service: Service) -> None:
    assert run(service, "-n", "15", "--max-time", "70") > 300


@pytest.mark.long
def test_no_request_about_a_machine_that_is_there_breaks_it(service: Service) -> None:
    waiting = [word for name in WAITING for word in ("--exclude-path", f"/v1/machines/{{reference}}/{name}")]
    narrow = ["--include-path-regex", "machines/{reference}", "--exclude-method", "DELETE", *waiting]
    assert run(service, "--box", "-n", "15", "--max-time", "60", *narrow) > 100

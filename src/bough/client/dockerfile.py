"""Build a Dockerfile with the caller's buildah: its storage, cache and settings are the caller's.

The result goes to the service as an archive of one image, like any other container image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bough.errors import BuildFailed, HostLacks, InvalidInput
from bough.progress import Progress, Report, ignore_progress

_FILES = ("Containerfile", "Dockerfile")
_STEP = re.compile(r"(?:\[[^\]]*\] )?STEP (\d+)/(\d+): ")
_OUTPUT_LINES = 60
_LINE_CHARACTERS = 500
#: bough's name of an architecture -> buildah's.
_ARCHES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "riscv64": "riscv64"}


@dataclass(frozen=True)
class Dockerfile:
    """A Dockerfile and how to build it.

    Attributes:
        context: directory whose files the Dockerfile may copy.
        file: path of the Dockerfile, "-" for the standard input; None: Containerfile or Dockerfile of the
            context.
        arch: bough's name of the architecture; None: the host's.
        fresh: run all steps, also those that buildah has in its cache.
    """

    context: Path
    file: str | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    arch: str | None = None
    fresh: bool = False

    def check(self) -> None:
        """Check that the directory and the file exist.

        Raises:
            InvalidInput
        """
        if not self.context.is_dir():
            raise InvalidInput(
                f"{self.context} is not a directory",
                hint="name the directory that the Dockerfile copies from: bough image build -f Dockerfile .",
            )
        if self.file is None and not any((self.context / name).is_file() for name in _FILES):
            raise InvalidInput(f"{self.context} has no Dockerfile", hint="name it: -f FILE")
        if self.file not in (None, "-") and not Path(str(self.file)).is_file():
            raise InvalidInput(f"{self.file} is not a file", hint="name a Dockerfile: -f FILE")

    def default_label(self) -> str:
        """Return a label made from the name of the context's directory."""
        name = re.sub(r"[^a-z0-9._-]+", "-", self.context.resolve().name.lower()).strip("-._")
        return name or "image"


@contextmanager
def built_archive(dockerfile: Dockerfile, label: str, report: Report | None = None) -> Iterator[Path]:
    """Build the image and yield an archive of it, in the form of `docker save`, until the block ends.

    The form of Docker instead of OCI's keeps HEALTHCHECK.

    Raises:
        InvalidInput: no such directory or file. HostLacks: buildah is not installed.
        BuildFailed: carries the step and the end of buildah's output.
    """
    dockerfile.check()
    if shutil.which("buildah") is None:
        raise HostLacks(
            "buildah is not installed, which builds Dockerfiles",
            hint="sudo apt install buildah (on other distributions: bough doctor)",
        )
    # Not /tmp, which may be in memory: the archive has the size of the image.
    with tempfile.TemporaryDirectory(prefix="bough-", dir=os.environ.get("TMPDIR", "/var/tmp")) as place:
        buildah = _Buildah(label, report or ignore_progress)
        identifier = Path(place, "id")
        buildah.run(render_build(dockerfile, identifier), stdin=dockerfile.file == "-")
        archive = Path(place, f"{dockerfile.default_label()}.tar")
        buildah.begin_step("writing the image")
        buildah.run(["buildah", "push", "-q", identifier.read_text().strip(), f"docker-archive:{archive}"])
        yield archive


def render_build(dockerfile: Dockerfile, identifier: Path) -> list[str]:
    """Return buildah's command, which writes the image's id to `identifier`."""
    words = ["buildah", "bud", "--layers", "--force-rm", "--format", "docker", "--iidfile", str(identifier)]
    words += [
        word for name, value in dockerfile.build_args.items() for word in ("--build-arg", f"{name}={value}")
    ]
    words += ["--target", dockerfile.target] if dockerfile.target else []
    words += ["--arch", _ARCHES.get(dockerfile.arch, dockerfile.arch)] if dockerfile.arch else []
    words += ["--no-cache"] if dockerfile.fresh else []
    words += ["--file", str(dockerfile.file)] if dockerfile.file is not None else []
    return [*words, "--", str(dockerfile.context)]


class _Buildah:
    """Runs of buildah whose output becomes progress."""

    def __init__(self, label: str, report: Report) -> None:
        self._label = label
        self._report = report
        self._step = "building the Dockerfile"
        self._fraction: float | None = None
        self._last: deque[str] = deque(maxlen=_OUTPUT_LINES)

    def begin_step(self, step: str) -> None:
        self._step, self._fraction = step, None
        self._report(Progress(step))

    def run(self, argv: list[str], *, stdin: bool = False) -> None:
        """Run a command to its end. An exception in the caller's thread, such as Ctrl-C, ends the command.

        Raises:
            BuildFailed
        """
        process = subprocess.Popen(
            argv,
            stdin=None if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                self._line(line.rstrip()[:_LINE_CHARACTERS])
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if status != 0:
            raise BuildFailed(
                f"the image {self._label} could not be built: {self._step} failed",
                hint="if buildah itself cannot run a container here: BUILDAH_ISOLATION=chroot"
                if any("error running container" in line for line in self._last)
                else None,
                image=self._label,
                step=self._step,
                output="\n".join(self._last)[-4000:],
            )

    def _line(self, text: str) -> None:
        self._last.append(text)
        step = _STEP.match(text)
        if step is None:
            self._report(Progress(self._step, self._fraction, "".join(filter(str.isprintable, text))[:80]))
            return
        number, count = int(step[1]), max(1, int(step[2]))
        self._step = "".join(filter(str.isprintable, text))[:160]
        self._fraction = min(1.0, (number - 1) / count)
        self._report(Progress(self._step, self._fraction))

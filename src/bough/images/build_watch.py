"""The output of a build: each step becomes progress, the last lines become an error."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

from bough.errors import BuildFailed, NoSpace
from bough.progress import Progress, Report
from bough.qemu.subprocesses import end_subprocess

_OUTPUT_LINES = 40


class BuildWatch:
    """Reader of the output of a build's scripts.

    Args:
        label: of the image; or the name of what the build makes, with `noun`.
        noun: "the image", before the label in errors.
        needed: space that the build needs, for an error.
        mirror: how a user names another mirror, for a hint.
    """

    def __init__(
        self,
        label: str,
        report: Report,
        *,
        noun: str = "the image ",
        needed: str = "about 2.5 GiB",
        mirror: str = "--mirror",
    ) -> None:
        self._label = label
        self._noun = noun
        self._needed = needed
        self._mirror = mirror
        self._report = report
        self._step = "preparing"
        self._last: deque[str] = deque(maxlen=_OUTPUT_LINES)
        self._unavailable: list[str] = []

    async def follow(self, process: asyncio.subprocess.Process, work: Path) -> None:
        """Read the output until the process ends. Cancelling kills all processes of the build.

        Raises:
            BuildFailed: carries the step and the end of the output.
            NoSpace
        """
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                self._line(line.decode(errors="replace").rstrip())
            status = await process.wait()
        except BaseException:
            await end_subprocess(process)
            raise
        if status != 0:
            raise self._failure(status, work)

    def _line(self, text: str) -> None:
        if text.startswith("@step "):
            self._step = text.removeprefix("@step ")
            self._report(Progress(f"building {self._label}: {self._step}"))
            return
        if text.startswith("@unavailable "):
            self._unavailable.append(text.removeprefix("@unavailable ")[:200])
            return
        self._last.append(text[:500])
        if text.startswith("I: "):
            self._report(Progress(f"building {self._label}: {self._step}", detail=text[3:].rstrip(".")))

    def _failure(self, status: int, work: Path) -> BuildFailed | NoSpace:
        output = "\n".join(self._last)
        if "No space left on device" in output:
            return NoSpace(
                f"no space left for the build of {self._label} below {work.parent}",
                hint=f"a build needs {self._needed}",
                output=output[-2000:],
            )
        if self._unavailable:
            gone = self._unavailable
            more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
            return BuildFailed(
                f"{self._noun}{self._label} could not be built: the archive no longer has "
                f"these locked versions: {', '.join(gone[:5])}{more}",
                hint="use an archive of that day (--mirror, --security-mirror), "
                "or write a new lock: bough image lock",
                image=self._label,
                step=self._step,
                unavailable=gone[:500],
            )
        return BuildFailed(
            f"{self._noun}{self._label} could not be built: {self._step} failed (status {status})",
            hint=_hint(output, self._mirror),
            image=self._label,
            step=self._step,
            output=output[-4000:],
        )


def _hint(output: str, mirror: str) -> str:
    if any(word in output for word in ("Could not resolve", "Could not connect", "Temporary failure")):
        return f"no mirror could be reached: check the network, or name another mirror: {mirror}"
    if "is expired" in output:
        return f"the mirror's lists have expired, or this host's clock is wrong; another mirror: {mirror}"
    return "see the end of the output above; bough doctor shows whether a program is missing"

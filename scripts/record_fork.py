"""Record a machine that is forked, as docs/fork.svg: python scripts/record_fork.py

The script runs each command with the `bough` of this checkout, and draws the command, its output and its
duration. The picture shows each line at the moment of the recording. The machines are deleted afterwards; the
image stays.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
BOUGH = Path(sys.executable).with_name("bough")
TARGET = ROOT / "docs" / "fork.svg"
COUNTER = "i=0; while sleep 0.1; do echo $((i += 1)) > /dev/shm/count; done"
FORKS = ("try-1", "try-2", "try-3")
#: Pause before each command, as a person who types it.
TYPING_S = 0.8


class Recording:
    """A console that keeps the moment of each printed line, in seconds since the first."""

    def __init__(self) -> None:
        self.console = Console(record=True, force_terminal=True, width=92)
        self.moments: list[float] = []
        self._now_s = 0.0

    def command(self, *words: str, shown: str = "") -> str:
        """Run a command of bough and record it. Raises CalledProcessError."""
        self._now_s += TYPING_S
        self._line(Text.assemble(("$ ", "dim"), (shown or f"bough {' '.join(words)}", "bold")))
        began = time.monotonic()
        output = subprocess.run([BOUGH, *words], check=True, stdout=subprocess.PIPE, text=True).stdout
        taken_s = time.monotonic() - began
        self._now_s += taken_s
        for line in output.splitlines():
            self._line(Text(line))
        self._line(Text(f"{taken_s * 1000:,.0f} ms", "green"))
        return output

    def comment(self, text: str) -> None:
        self._now_s += TYPING_S
        self._line(Text(f"# {text}", "cyan"))

    def _line(self, text: Text) -> None:
        self.console.print(text, highlight=False, overflow="crop", no_wrap=True)
        self.moments.append(self._now_s)

    def save(self, target: Path) -> None:
        """Write the picture. Each line appears by an animation, and stands still where there is none."""
        drawn = self.console.export_svg(title="bough fork", unique_id="fork")
        rules = [
            f'[clip-path="url(#fork-line-{number})"] {{ animation: appear 1ms {moment:.2f}s both }}'
            for number, moment in enumerate(self.moments)
        ]
        style = "@keyframes appear { from { opacity: 0 } }\n" + "\n".join(rules)
        # No font of another host: the picture is read without a network.
        drawn = re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL)
        target.write_text(drawn.replace("</style>", f"{style}\n</style>", 1))


def main() -> None:
    recording = Recording()
    try:
        story(recording)
    finally:
        for name in ("web", *FORKS):
            subprocess.run([BOUGH, "delete", "--force", name], check=False, capture_output=True)
    recording.save(TARGET)
    print(TARGET)


def story(recording: Recording) -> None:
    subprocess.run(
        [BOUGH, "run", "debian:12", "--", "true"], check=True
    )  # boots the image, once for all runs
    recording.command("run", "debian:12", "--name", "web", "--", "hostname")
    start = f"nohup sh -c '{COUNTER}' >/dev/null 2>&1 &"
    begin = f"{start} until [ -s /dev/shm/count ]; do sleep 0.1; done"
    subprocess.run([BOUGH, "exec", "web", "--", "sh", "-c", begin], check=True)
    recording.comment("a program in the machine counts in memory")
    recording.command("exec", "web", "--", "cat", "/dev/shm/count")
    recording.comment("three forks of the running machine")
    recording.command("fork", "web", *FORKS)
    recording.comment("the program counts on in each fork, with a new host name and network card")
    look = "echo $(hostname) $(cat /sys/class/net/e*/address) counts $(cat /dev/shm/count)"
    for name in FORKS:
        recording.command("exec", name, "--", "sh", "-c", look, shown=f"bough exec {name} -- ...")
    recording.comment("a change in one fork does not affect the others")
    recording.command("exec", FORKS[0], "--", "rm", "-rf", "/etc")
    recording.command("exec", FORKS[1], "--", "wc", "-l", "/etc/passwd")


if __name__ == "__main__":
    main()

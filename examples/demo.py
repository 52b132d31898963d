"""Build an image, run and use a machine, restart it, fork it, and export a fork: what bough does.

    make demo
    python examples/demo.py --svg demo.svg           also draw the output

The machine is deleted afterwards, also if this program is interrupted or killed; the image stays.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

import bough
from bough.errors import BoughError
from bough.progress import Progress
from bough.units import MIB, format_duration, format_size

if TYPE_CHECKING:
    from bough import Machine

IMAGE = "debian:12"
MEMORY = "1GiB"
WIDTH = 100
FORKS = 20


class Story:
    """A printer of steps, each with the equivalent shell command and its duration."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()

    @contextmanager
    def step(self, what: str, command: str) -> Iterator[list[str]]:
        """Time a step. Lines that the block appends to the list are shown below the step."""
        before, seen = time.monotonic(), list[str]()
        with self._waiting(what):
            yield seen
        taken = format_duration(time.monotonic() - before)
        self.console.print(Text.assemble((f"{taken:>12}", "bold green"), f"  {what}"), highlight=False)
        if command:
            self.console.print(Text(f"{'':14}$ {command}", "cyan"), highlight=False)
        for line in seen:
            self.console.print(Text(f"{'':14}{line}", "dim"), highlight=False)

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        if self.console.is_terminal and not self.console.record:
            with self.console.status(what):
                yield
        else:
            yield

    def progress(self, step: Progress) -> None:
        """Print the steps of a long image build, if stderr is no terminal with a spinner."""
        if not self.console.is_terminal and step.step != getattr(self, "_told", None):
            self._told = step.step
            print(f"{'':14}... {step.step}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--svg", type=Path, help="draw what is printed into this file")
    options = parser.parse_args()
    # SIGTERM must delete the machine, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    drawn = options.svg is not None
    width = WIDTH if drawn or not sys.stdout.isatty() else None
    console = Console(record=drawn, force_terminal=drawn or None, width=width, soft_wrap=not drawn)
    story = Story(console)
    try:
        with bough.connect() as hypervisor:
            tell(story, hypervisor)
    except BoughError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"\nhint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the machine is deleted", file=sys.stderr)
        return 130
    if drawn:
        console.save_svg(str(options.svg), title="make demo")
    return 0


def tell(story: Story, hypervisor: bough.Hypervisor) -> None:
    with story.step(
        f"build {IMAGE} from packages, if the image is missing", f"bough image build {IMAGE}"
    ) as seen:
        image = hypervisor.build_image(IMAGE, progress=story.progress)
        seen.append(f"{image.digest[:12]}, {format_size(image.disk_bytes)} on disk")
    name = f"demo-{secrets.token_hex(2)}"
    with story.step("create a machine", f"bough create {IMAGE} --name {name}"):
        # Ephemeral: the service deletes the machine when this program ends for any reason.
        spec = {"image": IMAGE, "memory": MEMORY}
        machine = hypervisor.create_from(spec, name=name, ephemeral=True)
    try:
        machine.hold()
        work(story, machine)
    finally:
        machine.discard()
    story.console.print(f"\nTotal time: {format_duration(time.monotonic() - story.started)}. "
                        "The machine is deleted; the image stays.", highlight=False)  # fmt: skip
    story.console.print(
        "Next: .venv/bin/bough run debian:12 opens a shell in a new machine.", highlight=False
    )


def work(story: Story, machine: Machine) -> None:
    name = machine.name
    with story.step("boot the machine until its agent answers", f"bough start {name}") as seen:
        machine.start()
        info = machine.info()
        seen.append(f"accelerator {info.accelerator}, {info.vcpus} vCPUs, {format_size(info.memory_bytes)}")
    with story.step("run a command in the machine", f"bough exec {name} -- uname -a") as seen:
        seen.append(machine.exec("uname", "-a", check=True).stdout.strip())
    with story.step("run 20 more commands, one after the other", f"bough exec {name} -- true") as seen:
        before = time.monotonic()
        for _ in range(20):
            machine.exec("true", check=True)
        seen.append(f"{(time.monotonic() - before) / 20 * 1000:.0f} ms each")
    keep_a_file(story, machine)
    copy_a_file(story, machine)
    reach_a_port(story, machine)
    branch(story, machine)
    with story.step("power the guest off", f"bough stop {name}"):
        machine.stop()


def keep_a_file(story: Story, machine: Machine) -> None:
    text = secrets.token_hex(8)
    with story.step(
        "write a file in the machine", f"bough exec {machine.name} -- sh -c 'echo {text} > /root/kept'"
    ):
        machine.shell(f"echo {text} > /root/kept", check=True)
        boot = machine.read_text("/proc/sys/kernel/random/boot_id")
    with story.step("restart the machine", f"bough restart {machine.name}"):
        machine.restart()
    with story.step("read the file again", f"bough exec {machine.name} -- cat /root/kept") as seen:
        kept = machine.exec("cat", "/root/kept", check=True).stdout.strip()
        rebooted = machine.read_text("/proc/sys/kernel/random/boot_id") != boot
        if kept != text or not rebooted:
            raise BoughError(f"the file holds {kept!r} instead of {text!r}, rebooted: {rebooted}")
        seen.append(kept)


def copy_a_file(story: Story, machine: Machine) -> None:
    with tempfile.TemporaryDirectory(prefix="bough-demo-") as directory:
        source, back = Path(directory) / "source", Path(directory) / "back"
        source.write_bytes(secrets.token_bytes(16 * MIB))
        with story.step("copy 16 MiB into the machine", f"bough cp file {machine.name}:/root/file"):
            machine.copy_to(source, "/root/file")
        with story.step("copy the 16 MiB out again", f"bough cp {machine.name}:/root/file back") as seen:
            machine.copy_from("/root/file", back)
            if back.read_bytes() != source.read_bytes():
                raise BoughError("the copied file differs from the original")
            seen.append("the same bytes")


def reach_a_port(story: Story, machine: Machine) -> None:
    machine.shell("mkdir -p /srv/www && echo hello from $(hostname) > /srv/www/index.html", check=True)
    server = machine.spawn("python3", "-m", "http.server", "80", "--directory", "/srv/www")
    try:
        machine.shell("until (exec 3<>/dev/tcp/127.0.0.1/80) 2>/dev/null; do sleep 0.1; done".join(
            ["timeout 60 bash -c '", "'"]), check=True)  # fmt: skip
        port = machine.forward(80)
        with story.step(
            "connect to the guest's web server from this host", f"bough port add {machine.name} 0:80"
        ) as seen:
            with urllib.request.urlopen(f"http://127.0.0.1:{port.host_port}/", timeout=30) as answer:
                seen.append(f"http://127.0.0.1:{port.host_port}/ says: {answer.read().decode().strip()}")
    finally:
        server.close()


def branch(story: Story, machine: Machine) -> None:
    """Fork the machine as it is now, give each fork its own work, and export one fork."""
    with story.step("wait until the boot has finished", f"bough wait {machine.name} --until booted"):
        machine.wait("booted", timeout=300)
    machine.shell("echo kept in memory > /dev/shm/note; sleep 1000 & echo $! > /dev/shm/pid", check=True)
    with story.step(
        f"fork the running machine {FORKS} times", f"bough fork {machine.name} --count {FORKS}"
    ) as seen:
        forks = machine.fork(count=FORKS, ephemeral=True)
        working = [fork for fork in forks if not isinstance(fork, BoughError)]
        if len(working) != FORKS:
            raise BoughError(f"only {len(working)} of {FORKS} forks came up")
        seen.append(f"the processes run on, in the machine and in all {FORKS} forks")
    try:
        with story.step("run another command in each fork", "bough exec ... in each") as seen:
            script = "kill -0 $(cat /dev/shm/pid) && echo $(( {0} * {0} )) $(hostname) $(cat /etc/machine-id)"
            did = [fork.shell(script.format(n), check=True).stdout.split() for n, fork in enumerate(working)]
            if len({tuple(who) for _, *who in did}) != FORKS:
                raise BoughError("two forks have the same identity")
            for result, host, identity in did[-3:]:
                seen.append(f"{result:>4} from {host}, machine-id {identity[:12]}")
        hand_over(story, working[-1])
    finally:
        for fork in working:
            fork.discard()


def hand_over(story: Story, machine: Machine) -> None:
    with tempfile.TemporaryDirectory(prefix="bough-demo-") as directory:
        bundle = Path(directory) / "one.bough"
        with story.step("write a running fork to one file", f"bough export {machine.name} one.bough") as seen:
            machine.export(bundle, without_image=True)
            seen.append(f"{format_size(bundle.stat().st_size)}, disks and memory")
        with story.step(
            "import the file: the fork continues, here or on another host", "bough import one.bough"
        ) as seen:
            with bough.connect() as hypervisor:
                again = hypervisor.import_bundle(bundle, name=f"{machine.name}-again")
            try:
                note = again.shell("kill -0 $(cat /dev/shm/pid) && cat /dev/shm/note", check=True).stdout
                seen.append(f"its process runs on; a file in its memory says: {note.strip()}")
            finally:
                again.delete(force=True)


if __name__ == "__main__":
    sys.exit(main())

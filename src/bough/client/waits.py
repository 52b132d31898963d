"""The words of a test: commands that must succeed or fail, and waits for a guest.

Except for the wait for the console, the guest itself waits: see bough.guest_checks. A time-out follows the
guest: while the guest works, only the processor time of its QEMU counts, so a busy host makes no test fail.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from bough.client.guest import command_failed
from bough.client.machine_faults import BreakableGuest

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator

    from bough.client.websocket import WebSocket
    from bough.errors import CheckFailed, DeadlineExceeded
    from bough.guest_checks import Attempts, Check

#: Seconds of the guest's own time that a wait takes at most, unless the caller knows better.
PATIENCE_S = 60.0
#: The end of a command's output, or of the console, that an error carries.
_OUTPUT_CHARS = 64 * 1024
#: The end of the console in which a text is searched.
_CONSOLE_BYTES = 256 * 1024
_CONSOLE_MOST_TIMES = 30
#: Longest wait for the rest of a line that matches already.
_REST_OF_LINE_S = 0.5


class AwaitedGuest(BreakableGuest):
    """The words of tests: commands that must succeed or fail, and waits for a guest.

    Every wait can raise these errors of bough.errors:
    - DeadlineExceeded: the time is up. `output` has the output of the last failed attempt.
    - CheckFailed: the wait cannot succeed any more; `output` as above.
    """

    # -- commands ---------------------------------------------------------------------------------

    def succeed(self, *scripts: str, user: str | None = None, timeout: float | None = None) -> str:
        """Run shell scripts that must all succeed. Return their standard output.

        Raises:
            CommandFailed: the first script that ended with another status than 0.
            DeadlineExceeded: a script was killed after `timeout` seconds.
        """
        return "".join(
            self.exec("sh", "-c", script, user=user, timeout=timeout, check=True).stdout for script in scripts
        )

    def fail(self, *scripts: str, user: str | None = None, timeout: float | None = None) -> str:
        """Run shell scripts that must all fail. Return their standard output.

        Raises:
            CheckFailed: the first script that succeeded.
        """
        from bough.errors import CheckFailed

        outputs = []
        for script in scripts:
            done = self.exec("sh", "-c", script, user=user, timeout=timeout)
            if done.ok:
                text = f"`{script}` succeeded in machine '{self.name}', and had to fail"
                raise CheckFailed(
                    text, machine=self.name, output=(done.stdout + done.stderr)[-_OUTPUT_CHARS:]
                )
            outputs.append(done.stdout)
        return "".join(outputs)

    def wait_until_succeeds(
        self, script: str, *, user: str | None = None, timeout: float = PATIENCE_S
    ) -> str:
        """Repeat a shell script in the guest until it succeeds. Return its output, without newlines at
        the end.
        """
        from bough.guest_checks import script_passes

        return self._wait_inside(script_passes(script), timeout, user, as_image=True)

    def wait_until_fails(self, script: str, *, user: str | None = None, timeout: float = PATIENCE_S) -> None:
        """Repeat a shell script in the guest until it fails."""
        from bough.guest_checks import script_fails

        self._wait_inside(script_fails(script), timeout, user, as_image=True)

    # -- parts of the guest -----------------------------------------------------------------------

    def wait_for_unit(self, unit: str, *, user: str | None = None, timeout: float = PATIENCE_S) -> None:
        """Wait until a systemd unit is active, or a one-shot unit has succeeded.

        Args:
            user: the user whose systemd has the unit; default: the system's.

        Raises:
            CheckFailed: the unit failed, does not exist, or is inactive and has no job in the 20th attempt.
        """
        from bough.guest_checks import unit_is_active

        self._wait_inside(unit_is_active(unit, of_user=user is not None), timeout, user)

    def wait_for_open_port(self, port: int, host: str | None = None, *, timeout: float = PATIENCE_S) -> None:
        """Wait until a program of the guest listens at the TCP port. With `host`, until the guest can connect
        to that host's port.
        """
        from bough.guest_checks import port_is

        self._wait_inside(port_is("open", port, host), timeout)

    def wait_for_closed_port(
        self, port: int, host: str | None = None, *, timeout: float = PATIENCE_S
    ) -> None:
        """Wait until no program listens at the TCP port; see `wait_for_open_port`."""
        from bough.guest_checks import port_is

        self._wait_inside(port_is("closed", port, host), timeout)

    def wait_for_file(self, path: str, *, timeout: float = PATIENCE_S) -> None:
        """Wait until the path exists in the guest."""
        from bough.guest_checks import file_exists

        self._wait_inside(file_exists(path), timeout)

    def wait_for_console_text(self, pattern: str, *, timeout: float = PATIENCE_S) -> str:
        """Wait until the regular expression matches the console's output. Return the matched text.

        Earlier output counts. Needs no agent in the guest.

        Args:
            timeout: seconds in which the console prints nothing; the wait lasts at most 30 times as long.
        """
        import re

        from bough.errors import DeadlineExceeded

        regex = re.compile(pattern, re.MULTILINE)
        seen, ends = b"", time.monotonic() + _CONSOLE_MOST_TIMES * timeout
        with self.console(backlog=True) as stream:
            while time.monotonic() < ends:
                try:
                    data = stream.receive(timeout)
                except TimeoutError:
                    break
                if not isinstance(data, bytes):  # QEMU has ended
                    break
                seen = (seen + data)[-_CONSOLE_BYTES:]
                if found := regex.search(_plain(seen)):
                    return _longest_match(found, stream, seen)
        shown = _plain(seen)
        raise DeadlineExceeded(
            f"machine '{self.name}': the console shows no text like {pattern!r}, and printed nothing for "
            f"{timeout:g} s{_last_line(shown)}",
            machine=self.name,
            timeout_s=timeout,
            output=shown[-_OUTPUT_CHARS:],
        )

    def block(self) -> None:
        """Cut all links between this machine and others: frames are lost. The cut ends by `unblock`, or when
        this program ends.

        Raises:
            Conflict: the machine is on no network. WrongState: the machine does not run.
        """
        from bough.client.fault import Fault
        from bough.contract.faults import AddPartition
        from bough.contract.networks import ListNetworks
        from bough.errors import Conflict

        networks = [
            network["id"]
            for network in self._api.send(ListNetworks())
            if any(one["machine"] == self.name for one in network["machines"])
        ]
        if not networks:
            raise Conflict(f"machine '{self.name}' is on no network", machine=self.name)
        for network in networks:
            request = AddPartition(pattern="isolate", machines=[self._reference], network=network, held=True)
            Fault(self._api, self._api.send(request))

    def unblock(self) -> None:
        """End the cut of `block`, and all other partitions that name only this machine."""
        from bough.client.fault import list_faults
        from bough.contract.faults import HealFaults

        names = (self._reference, self.name)
        ours = [
            one.id
            for one in list_faults(self._api)
            if one.kind == "partition" and len(one.machines) == 1 and one.machines[0] in names
        ]
        if ours:
            self._api.send(HealFaults(faults=ours))

    @contextlib.contextmanager
    def subtest(self, name: str) -> Iterator[None]:
        """Name the steps of the block, for errors in the block and for the report of the test."""
        with self._api.section(name):
            try:
                yield
            except Exception as error:
                error.add_note(f"in the subtest {name!r}")
                raise

    # -- how --------------------------------------------------------------------------------------

    def _wait_inside(
        self, check: Check, timeout: float, user: str | None = None, *, as_image: bool = False
    ) -> str:
        """Wait in the guest until the check passes, for `timeout` seconds of its own. Return the output."""
        from bough.errors import DeadlineExceeded
        from bough.guest_checks import GAVE_UP, Attempts, render_wait

        out, attempts = bytearray(), Attempts()
        try:
            argv = render_wait(check)
            with self.spawn(*argv, user=user, patience=timeout, as_image=as_image) as process:
                process.close_stdin()
                for stream, data in process:
                    if stream == "stdout":
                        out += data
                    else:
                        attempts.feed(data)
                status = process.wait()
        except DeadlineExceeded:
            raise self._too_late(check.what, attempts, timeout) from None
        if status.code == GAVE_UP:
            raise self._hopeless(check.what, attempts)
        if status.code != 0:
            raise command_failed(self.name, check.argv, status, bytes(out), attempts.output.encode())
        return out.decode(errors="replace")

    def _too_late(self, what: str, attempts: Attempts, timeout: float) -> DeadlineExceeded:
        from bough.errors import DeadlineExceeded

        return DeadlineExceeded(
            f"machine '{self.name}': waited {timeout:g} s of the guest until {what}; "
            f"attempts: {attempts.count}{_last_line(attempts.output)}",
            machine=self.name,
            timeout_s=timeout,
            attempts=attempts.count,
            output=attempts.output,
        )

    def _hopeless(self, what: str, attempts: Attempts) -> CheckFailed:
        from bough.errors import CheckFailed

        first = attempts.output.partition("\n")[0]
        text = f"machine '{self.name}': waited until {what}: {first}"
        return CheckFailed(text, machine=self.name, output=attempts.output)


def _longest_match(found: re.Match[str], stream: WebSocket, seen: bytes) -> str:
    """Return the match, when its line has come: the console may have sent a part of a number."""
    while found.end() == len(found.string):
        try:
            data = stream.receive(_REST_OF_LINE_S)
        except TimeoutError:
            break
        if not isinstance(data, bytes):
            break
        seen += data
        again = found.re.search(_plain(seen))
        if again is None:
            break
        found = again
    return found.group()


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return f": {lines[-1][:300]}" if lines else ""


def _plain(data: bytes) -> str:
    """Return output of a console without escape sequences and carriage returns."""
    import re

    return re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])|\r", "", data.decode(errors="replace"))

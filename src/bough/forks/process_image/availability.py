"""Availability of process images on this host, and the only off switch."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable

from bough.errors import BoughError, HostLacks, NoSpace
from bough.forks.process_image.builds import TESTED, Build, SelfTest, SelfTests, read_build
from bough.forks.process_image.captured import HOST
from bough.forks.process_image.switch import why_off
from bough.paths import Home
from bough.qemu.binary import find_qemu
from bough.qemu.host import Check

log = logging.getLogger("bough.forks")

_WITHOUT = "each fork starts a QEMU"


class Availability:
    """Attributes:
    off: reason for process images being off, since the service started; None: on.
    tested: versions of builds without need of a self-test.
    """

    def __init__(self, home: Home, *, tested: frozenset[str] = TESTED) -> None:
        self.off = why_off(home.settings)
        self._tests = SelfTests(home.self_tests)
        self.tested = tested

    async def require(self, program: str) -> None:
        """Raise HostLacks if a QEMU program gets no process images: switched off, or failed in
        the self-test.
        """
        if self.off is not None:
            raise HostLacks(f"process images are off: {self.off}")
        if os.uname().machine != HOST:
            raise HostLacks(f"process images exist on {HOST} alone")
        test = await asyncio.to_thread(self._find, program)
        if test is not None and test.failure is not None:
            raise HostLacks(f"the self-test of this QEMU failed: {test.failure}")

    async def needs_self_test(self, program: str) -> bool:
        """Return whether an image has to be tried out before its first use."""
        build = await asyncio.to_thread(read_build, program)
        return build.version not in self.tested and self._tests.find(build) is None

    async def self_test(self, program: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run the self-test `work`, and keep the result. A cancelled test leaves no result.

        Raises HostLacks: the test failed. NoSpace: the test is repeated later.
        """
        build, failure = await asyncio.to_thread(read_build, program), None
        try:
            await work()
        except NoSpace:
            raise
        except (BoughError, OSError, TimeoutError) as error:
            failure = str(error)[:300] or type(error).__name__
        self._tests.add(SelfTest(build, failure, time.time()))
        if failure is not None:
            log.warning("the self-test of process images on QEMU %s failed: %s", build.version, failure)
            raise HostLacks(f"the self-test of this QEMU failed: {failure}")
        log.info("process images passed their self-test on QEMU %s", build.version)

    def check(self) -> Check:
        """Return the line for `bough doctor`. Blocks."""
        name = "process images"
        if os.uname().machine != HOST:
            return Check(name, False, False, f"exist on {HOST} alone; {_WITHOUT}")
        if self.off is not None:
            return Check(name, False, False, f"off, since {self.off}; {_WITHOUT}")
        try:
            program = find_qemu(HOST).path
            build, test = read_build(program), self._find(program)
        except HostLacks as error:
            return Check(name, False, False, error.message)
        if test is not None and test.failure is not None:
            why = f"their self-test failed on QEMU {build.version}: {test.failure}; {_WITHOUT}"
            return Check(name, False, False, why)
        return Check(name, True, False, self._describe(build, test))

    def _describe(self, build: Build, test: SelfTest | None) -> str:
        if build.version in self.tested:
            return f"tested with QEMU {build.version}"
        if test is not None:
            return f"the self-test passed on QEMU {build.version}"
        return f"not tested with QEMU {build.version}; a self-test precedes the first use"

    def _find(self, program: str) -> SelfTest | None:
        return self._tests.find(read_build(program))

"""A process image: forks of a snapshot continue from the image, in place of a new QEMU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from bough.forks.process_image import loader_x86_64
from bough.forks.process_image.captured import IMAGE, CapturedProcess
from bough.forks.process_image.identifiers import fit_of, identifiers_of
from bough.forks.process_image.loader_program import render_program
from bough.qemu.argv import render_argv
from bough.qemu.plan import Plan
from bough.qemu.ram import open_memory

log = logging.getLogger("bough.forks")


class ProcessImage:
    """A captured process with the loaded state of one snapshot.

    Attributes:
        is_of_use: no process that continued from the image has failed so far.
        on_distrust: called when the image is not used any more.
    """

    def __init__(self, captured: CapturedProcess) -> None:
        self.is_of_use = True
        self.on_distrust: Callable[[], None] = lambda: None
        self._captured = captured

    def fits(self, plan: Plan) -> bool:
        """Return whether a machine with this plan may continue from the image."""
        return self.is_of_use and self._captured.fit == fit_of(plan)

    def distrust(self, machine_id: str, why: str) -> None:
        """Stop the use of the image after an error. Later forks start a new QEMU instead."""
        if self.is_of_use:
            self.is_of_use = False
            log.warning("the process image of machine %s is not used any more: %s", machine_id, why)
            self.on_distrust()

    def prepare(self, plan: Plan, given: Mapping[str, int], stack: ExitStack) -> tuple[list[str], list[int]]:
        """Return the loader's command line and descriptors; see bough.qemu.process_start.Loader.

        The loader and the program are unnamed files, executable on every mount.

        Raises:
            MachineFailed: a descriptor is missing, or a program or library was replaced.
        """
        image = self._captured.image.fileno()
        sandboxed = plan.jail.system_calls
        given = {**given, IMAGE: image}
        steps = render_program(self._captured, identifiers_of(plan), given, sandboxed=sandboxed)
        loader = stack.enter_context(open_memory(loader_x86_64.PROGRAM))
        program = stack.enter_context(open_memory(steps))
        # The words after the program's number are for readers of the process list.
        argv = [f"/proc/self/fd/{loader}", str(program), *render_argv(plan, given)]
        return argv, [image, loader, program]

"""Build an image from a recipe in a machine: from its start to a disk that can become an image."""

from __future__ import annotations

from bough.errors import BuildFailed, GuestRefused
from bough.images.disk import DiskIdentity
from bough.images.layers import CLEAN_SCRIPT
from bough.images.moves import render_move_script
from bough.images.store import ImageManifest
from bough.machines.first_boot import COMMANDS_TIMEOUT_S, run_script
from bough.machines.machine import Machine
from bough.progress import Progress, Report
from bough.spec import RecipeSpec

_BOOT_S = 300.0
#: An emulated guest copies some 20 MiB/s.
_MOVE_TIMEOUT_S = 3600.0


async def build_in_machine(
    machine: Machine, recipe: RecipeSpec, base: ImageManifest, label: str, report: Report
) -> tuple[int, str]:
    """Run the recipe's machine, and stop it. Return the number of the disk that becomes the image, and the
    output of dpkg-query in the guest (untrusted).

    Raises:
        BuildFailed: carries the output of the command that failed.
    """
    machine.program.leave_out()
    await machine.start(report)
    try:
        await machine.wait_ready(timeout_s=_BOOT_S + COMMANDS_TIMEOUT_S, report=report)
    except GuestRefused as error:
        raise BuildFailed(
            f"the image {label} could not be built: {machine.record.first_boot.error}", image=label
        ) from error
    report(Progress("cleaning up"))
    packages = await run_script(await machine.agent(), CLEAN_SCRIPT)
    if recipe.needs_move:
        await _move(machine, recipe, base, label, report)
    await machine.stop()
    return int(recipe.needs_move), packages


async def _move(
    machine: Machine, recipe: RecipeSpec, base: ImageManifest, label: str, report: Report
) -> None:
    report(Progress(f"copying to {recipe.file_system}"))
    script = render_move_script(
        DiskIdentity.derive(base.recipe),
        base.arch,
        recipe.size or base.size_bytes,
        recipe.file_system,
        recipe.partitions,
    )
    # In a separate shell, because of `set -e`; the last line is the exit status.
    wrapped = f'( {script} ) 2>&1\necho "@status $?"\n'
    output = await run_script(await machine.agent(), wrapped, timeout_s=_MOVE_TIMEOUT_S)
    said, _, status = output.rpartition("@status ")
    if status.strip() != "0":
        raise BuildFailed(
            f"the image {label} could not be built: the copy to its new disk failed",
            hint="the end of the output is above",
            image=label,
            step=f"copying to {recipe.file_system}",
            output=said[-4000:],
        )

"""The images of a project: each is built or pulled once, before a machine is made."""

from __future__ import annotations

from collections.abc import Iterable

from bough.hypervisor.image_source import ImageSource
from bough.hypervisor.images import Images
from bough.images.build import BuildOptions
from bough.progress import Report, about
from bough.spec.project.model import ProjectMachine


class ProjectImages:
    def __init__(self, images: Images, source: ImageSource) -> None:
        self._images = images
        self._source = source

    async def prepare(self, machines: Iterable[tuple[str, ProjectMachine]], report: Report) -> None:
        """Build or pull the images that are missing, one after another.

        Args:
            machines: roles and machines to create.

        Raises:
            NotFound, BuildFailed, DownloadFailed, NoSpace, HostLacks: images that were finished before stay.
        """
        done: set[tuple[str, str | None, bool]] = set()
        for role, machine in machines:
            key = (machine.spec.image, machine.spec.arch, machine.build is not None)
            if key not in done:
                done.add(key)
                await self._prepare(machine, about(role, report))

    async def _prepare(self, machine: ProjectMachine, report: Report) -> None:
        spec = machine.spec
        if machine.build is None:
            await self._source.find(spec.image, spec.arch, report)
            return
        # An image of the same recipe exists: the store finds it, and only moves the label.
        recipe = machine.build.model_dump(mode="json", exclude_unset=True)
        await self._images.build_recipe(
            recipe, label=spec.image, arch=spec.arch, how=BuildOptions(lock=machine.lock), report=report
        )

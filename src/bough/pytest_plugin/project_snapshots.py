"""Prepared snapshots of projects."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from bough.errors import BoughError, InvalidSpec, NotFound
from bough.pytest_plugin.locks import is_locked
from bough.pytest_plugin.machine_snapshots import image_digest
from bough.pytest_plugin.options import Source
from bough.pytest_plugin.preparation import LABEL, KeptSnapshot, Prepare, lock_of

if TYPE_CHECKING:
    from bough.client.hypervisor import Hypervisor
    from bough.client.project import ProjectSnapshot
    from bough.pytest_plugin.recording import Recorder


class ProjectSnapshots:
    """Makes and finds snapshots of projects; see preparation.Snapshots.

    A project is prepared under a name of its own, so a project that the user has brought up is left alone.
    """

    def __init__(self, hv: Hypervisor, recorder: Recorder, locks: Path) -> None:
        self._hv = hv
        self._recorder = recorder
        self._locks = locks

    def describe(self, source: Source) -> object:
        from bough.client.project_file import load_project
        from bough.spec.project.parse import parse_project

        file = load_project(source.file)
        try:
            machines = parse_project(file.data, name=file.name).machines.values()
        except InvalidSpec as error:
            raise file.locate(error) from None
        # The recipe of an image that the project builds is in the file's data.
        images = sorted({(one.spec.image, one.spec.arch or "") for one in machines if one.build is None})
        return {"project": file.data, "images": [self._digest(image, arch) for image, arch in images]}

    def find(self, reference: str) -> ProjectSnapshot:
        return self._hv.project_snapshot(reference)

    def make(self, source: Source, prepare: Prepare | None, label: str, message: str) -> ProjectSnapshot:
        with self._recorder.step("prepare", f"bring up and prepare {source.name}"):
            self._delete_stale(label)
            project = self._hv.project(source.file, name=label)
            try:
                project.up()
                for machine in project.machines.values():
                    self._recorder.name(machine.id, machine.name.removeprefix(f"{label}-"))
                if prepare is not None:
                    prepare(project)
                return project.snapshot(label, message=message)
            finally:
                with contextlib.suppress(NotFound):
                    project.down(volumes=True, force=True)

    def list(self) -> list[KeptSnapshot]:
        return [KeptSnapshot(one.created, one.id, one.message) for one in self._hv.list_project_snapshots()]

    def _digest(self, image: str, arch: str) -> str:
        return image_digest(self._hv, {"image": image, **({"arch": arch} if arch else {})})

    def _delete_stale(self, own: str) -> None:
        """Delete projects that a killed run was preparing: no process holds the lock of such a project."""
        for one in self._hv.list_projects():
            if not one.name.startswith(LABEL) or one.ephemeral:
                continue
            lock = lock_of(self._locks, self._hv.home.root, one.name.removeprefix(LABEL))
            if one.name == own or not is_locked(lock):
                with contextlib.suppress(BoughError):
                    self._hv.project(one.name).down(volumes=True, force=True)

"""/v1/machines/{reference}/mounts: directories of the service's host in a machine."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from bough.hypervisor import Hypervisor
from bough.machines.mounts import describe_mounts, mount_again, remove_mount


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1/machines/{reference}/mounts", tags=["mounts"])

    @router.get("")
    async def list_mounts(reference: str) -> list[dict[str, Any]]:
        return describe_mounts(hypervisor.machines.find(reference))

    @router.post("")
    async def add_mount(reference: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Share a directory: at once if the machine runs, and at each later start."""
        machine = hypervisor.machines.find(reference)
        await hypervisor.lifecycle.mount(machine, body)
        return describe_mounts(machine)

    @router.post("/again")
    async def again(reference: str) -> list[dict[str, Any]]:
        """Try the failed mounts again."""
        machine = hypervisor.machines.find(reference)
        await mount_again(machine)
        return describe_mounts(machine)

    @router.delete("")
    async def delete_mount(reference: str, target: str, force: bool = False) -> dict[str, bool]:
        """Stop sharing the directory at `target`; with `force`, even if a process in the guest uses it."""
        await remove_mount(hypervisor.machines.find(reference), target.rstrip("/"), force=force)
        return {"removed": True}

    return router

"""/v1/machines/NAME/mounts: directories of the service's host in a machine."""

from __future__ import annotations

from typing import Any

from bough.contract import mounts as contract
from bough.hypervisor import Hypervisor
from bough.machines.mounts import describe_mounts, mount_again, remove_mount
from bough.service.routes import Routes


def add_routes(routes: Routes) -> None:
    routes.quick(contract.ListMounts, list_mounts)
    routes.quick(contract.AddMount, add_mount)
    routes.quick(contract.RetryMounts, retry_mounts)
    routes.quick(contract.RemoveMount, delete_mount)


async def list_mounts(hypervisor: Hypervisor, asked: contract.ListMounts) -> list[dict[str, Any]]:
    return describe_mounts(hypervisor.machines.find(asked.reference))


async def add_mount(hypervisor: Hypervisor, asked: contract.AddMount) -> list[dict[str, Any]]:
    machine = hypervisor.machines.find(asked.reference)
    await hypervisor.lifecycle.mount(machine, asked.mount)
    return describe_mounts(machine)


async def retry_mounts(hypervisor: Hypervisor, asked: contract.RetryMounts) -> list[dict[str, Any]]:
    machine = hypervisor.machines.find(asked.reference)
    await mount_again(machine)
    return describe_mounts(machine)


async def delete_mount(hypervisor: Hypervisor, asked: contract.RemoveMount) -> dict[str, bool]:
    machine = hypervisor.machines.find(asked.reference)
    await remove_mount(machine, asked.target.rstrip("/"), force=asked.force)
    return {"removed": True}

"""/v1/standby: the number of standby machines for the next run of an image, or fork of a snapshot."""

from __future__ import annotations

from typing import Any

from bough.contract.host import KeepStandby, ListStandby
from bough.errors import InvalidInput
from bough.hypervisor import Hypervisor
from bough.service.routes import Routes


def add_routes(routes: Routes) -> None:
    routes.quick(ListStandby, list_standby)
    routes.quick(KeepStandby, keep_standby)


async def list_standby(hypervisor: Hypervisor, _: ListStandby) -> list[dict[str, Any]]:
    return hypervisor.standby.describe()


async def keep_standby(hypervisor: Hypervisor, asked: KeepStandby) -> list[dict[str, Any]]:
    if asked.spec is not None and asked.snapshot is None:
        hypervisor.running.want_standby(asked.spec, asked.count)
    elif asked.snapshot is not None and asked.spec is None:
        hypervisor.forking.want_standby(asked.snapshot, asked.count)
    else:
        raise InvalidInput("give either a spec or a snapshot")
    return hypervisor.standby.describe()

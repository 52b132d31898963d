"""Connect the routes to the hypervisor. hypervisor/ contains the logic of all calls."""

from __future__ import annotations

import os
from collections.abc import Callable

from fastapi import FastAPI

from bough.errors import BoughError
from bough.hypervisor import Hypervisor
from bough.machines.record import now
from bough.service import (
    bundles,
    commands,
    images,
    machines,
    mounts,
    networks,
    screen,
    snapshots,
    spares,
    store,
    streams,
)
from bough.service.answers import answer_exception
from bough.service.request_count import Usage
from bough.version import __version__

API_VERSION = 1


def create_app(hypervisor: Hypervisor, shut_down: Callable[[], None]) -> FastAPI:
    app = FastAPI(
        title="bough",
        version=__version__,
        summary="Whole machines over QEMU: images, machines and what runs inside them.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    started = now()
    usage = Usage(app)

    @app.get("/v1/version")
    async def version() -> dict[str, object]:
        return {
            "version": __version__,
            "api": API_VERSION,
            "pid": os.getpid(),
            "home": str(hypervisor.home.root),
            "started": started,
            "busy": usage.count,
        }

    @app.post("/v1/shutdown")
    async def shutdown() -> dict[str, bool]:
        """End the service. Machines continue, and the next service adopts them."""
        shut_down()
        return {"stopping": True}

    app.include_router(machines.routes(hypervisor))
    app.include_router(mounts.routes(hypervisor))
    app.include_router(networks.routes(hypervisor))
    app.include_router(images.routes(hypervisor))
    app.include_router(store.routes(hypervisor))
    app.include_router(screen.routes(hypervisor))
    app.include_router(snapshots.routes(hypervisor))
    app.include_router(bundles.routes(hypervisor))
    app.include_router(spares.routes(hypervisor))
    app.include_router(commands.routes(hypervisor))
    app.include_router(streams.routes(hypervisor))
    for kind in (BoughError, Exception, *_framework_errors()):
        app.add_exception_handler(kind, answer_exception)
    return app


def _framework_errors() -> tuple[type[Exception], ...]:
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    return (RequestValidationError, HTTPException)

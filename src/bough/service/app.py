"""Connect the routes to the hypervisor. hypervisor/ contains the logic of all calls."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from bough.errors import BoughError
from bough.hypervisor import Hypervisor
from bough.service import (
    bundles,
    commands,
    differences,
    faults,
    images,
    machines,
    mounts,
    networks,
    ports,
    project_branches,
    projects,
    screen,
    snapshots,
    standby,
    streams,
)
from bough.service.answers import answer_exception
from bough.service.host import ServiceCalls
from bough.service.request_count import RequestCount
from bough.service.routes import Routes
from bough.version import __version__


def create_app(hypervisor: Hypervisor, shut_down: Callable[[], None]) -> FastAPI:
    app = FastAPI(
        title="bough",
        version=__version__,
        summary="Whole machines over QEMU: images, machines and what runs inside them.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(create_routes(hypervisor, ServiceCalls(RequestCount(app), shut_down)).router)
    for kind in (BoughError, Exception, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_exception)
    return app


def create_routes(hypervisor: Hypervisor, service: ServiceCalls) -> Routes:
    """Return the routes of all requests."""
    routes = Routes(hypervisor)
    service.add_routes(routes)
    for part in (
        machines,
        ports,
        mounts,
        networks,
        projects,
        faults,
        images,
        screen,
        snapshots,
        project_branches,
        differences,
        bundles,
        standby,
        commands,
        streams,
    ):
        part.add_routes(routes)
    return routes

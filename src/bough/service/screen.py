"""/v1/machines/NAME: screenshot, keys."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from bough.hypervisor import Hypervisor
from bough.machines.screen import parse_keys, press, read_text, spell, take_picture


class KeysRequest(BaseModel):
    """The keys to press: first the characters of `text`, then each of `keys` ("enter", "ctrl-alt-delete")."""

    model_config = ConfigDict(extra="forbid")
    text: str = ""
    keys: list[str] = Field(default_factory=list, max_length=256)


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1/machines", tags=["machines"])

    @router.get("/{reference}/screenshot")
    async def screenshot(reference: str, form: Literal["png", "text"] = Query("png", alias="as")) -> Response:
        """Return the screen as a picture, or as text if the screen is in VGA's text mode."""
        qmp = hypervisor.machines.find(reference).screen()
        if form == "text":
            return Response((await read_text(qmp)).encode(), media_type="text/plain")
        return Response(await take_picture(qmp), media_type="image/png")

    @router.post("/{reference}/keys")
    async def keys(reference: str, body: KeysRequest) -> dict[str, int]:
        machine = hypervisor.machines.find(reference)
        combinations = [*spell(body.text), *map(parse_keys, body.keys)]
        await press(machine.screen(), combinations)
        return {"pressed": len(combinations)}

    return router

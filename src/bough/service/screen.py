"""/v1/machines/NAME: screenshot, screen-text, keys."""

from __future__ import annotations

from bough.contract import screen as contract
from bough.hypervisor import Hypervisor
from bough.machines.screen import parse_keys, press, read_text, spell, take_picture
from bough.service.routes import Routes


def add_routes(routes: Routes) -> None:
    routes.content(contract.GetScreenshot, get_screenshot, "image/png")
    routes.content(contract.GetScreenText, get_screen_text, "text/plain")
    routes.quick(contract.PressKeys, press_keys)


async def get_screenshot(hypervisor: Hypervisor, asked: contract.GetScreenshot) -> bytes:
    return await take_picture(hypervisor.machines.find(asked.reference).screen())


async def get_screen_text(hypervisor: Hypervisor, asked: contract.GetScreenText) -> str:
    return await read_text(hypervisor.machines.find(asked.reference).screen())


async def press_keys(hypervisor: Hypervisor, asked: contract.PressKeys) -> dict[str, int]:
    machine = hypervisor.machines.find(asked.reference)
    combinations = [*spell(asked.text), *map(parse_keys, asked.keys)]
    await press(machine.screen(), combinations)
    return {"pressed": len(combinations)}

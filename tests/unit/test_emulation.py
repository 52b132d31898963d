"""What only emulated guests need, and how a user learns that a guest is emulated."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bough.cli.command_streams import _PLAIN_NOTICE, await_machine
from bough.client.websocket import WebSocket
from bough.hypervisor.description import report_emulation
from bough.machines.machine import Machine
from bough.progress import Progress, notice, without_repeats
from bough.qemu.emulation import gives_way


@pytest.mark.parametrize(("accelerator", "expected"), [("tcg", True), ("kvm", False), (None, True)])
def test_only_emulated_forks_give_way(accelerator: str | None, expected: bool) -> None:
    assert gives_way(accelerator) is expected


def test_forks_give_each_reason_once() -> None:
    told: list[Progress] = []
    notes = ("/dev/kvm is closed", None, "/dev/kvm is closed", "the memory was saved on tcg")
    report_emulation(_machines(*notes), told.append)
    assert told == [notice("/dev/kvm is closed"), notice("the memory was saved on tcg")]


def test_a_run_that_boots_and_forks_gives_the_reason_once() -> None:
    told: list[Progress] = []
    report = without_repeats(told.append)
    report(notice("/dev/kvm is closed"))
    report(Progress("forking"))
    report(Progress("forking"))
    report_emulation(_machines("/dev/kvm is closed"), report)
    assert told == [notice("/dev/kvm is closed"), Progress("forking"), Progress("forking")]


def _machines(*notes: str | None) -> list[Machine]:
    records = (SimpleNamespace(accelerator_note=note) for note in notes)
    return [cast(Machine, SimpleNamespace(record=record)) for record in records]


@pytest.mark.parametrize("text", ["/dev/kvm is closed", 'says "no": \u2026', "with \x1b[31m colour"])
def test_a_short_run_prints_its_notices(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    messages = [{"progress": notice(text).__dict__}, {"machine": {"id": "a", "name": "b"}}]
    await_machine(_socket(messages))
    assert capfd.readouterr().err == f"note: {text.replace(chr(27) + '[31m', '')}\n"


def test_a_plain_notice_needs_no_json() -> None:
    begin, end = _PLAIN_NOTICE
    assert json.dumps({"progress": notice("text").__dict__}) == f"{begin}text{end}"


def _socket(messages: list[dict[str, Any]]) -> WebSocket:
    waiting = iter(map(json.dumps, messages))
    return cast(WebSocket, SimpleNamespace(receive=lambda _: next(waiting)))

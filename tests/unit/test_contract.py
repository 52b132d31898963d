"""The contract of the API: each request is written once, and both sides use the same class."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_type_hints

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute

import bough.client
import bough.contract
from bough.client.connection import PREFIX
from bough.contract import answers, checks
from bough.contract.commands import Command, ExecInMachine, RunCommand, RunInMachine
from bough.contract.message import Answer, Message
from bough.contract.request import Request, Route
from bough.contract.snapshots import MakeForks
from bough.service.app import create_app, create_routes
from bough.service.host import ServiceCalls
from bough.service.models import message_model, to_message

SOURCE = Path(bough.contract.__file__).parents[1]


def modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not found.ispkg:
            yield importlib.import_module(found.name)


def messages_of(kind: type[Message]) -> list[type[Any]]:
    return [
        member
        for module in modules(bough.contract)
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, kind) and member is not kind and member.__module__ == module.__name__
    ]


REQUESTS: list[type[Request]] = messages_of(Request)


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(cast(Any, None), lambda: None)


def routes() -> set[tuple[str, str]]:
    """Return method and path of each route of the API, except the OpenAPI document."""
    found = set()
    for route in create_routes(cast(Any, None), ServiceCalls(cast(Any, None), print)).router.routes:
        if isinstance(route, APIRoute):
            path = route.path.replace(":path}", "}")  # a label may contain slashes
            found |= {(method, path) for method in route.methods or ()}
        elif isinstance(route, APIWebSocketRoute):
            found.add(("stream", route.path))
    return found


def place(kind: type[Request]) -> tuple[str, str]:
    return "stream" if kind.route.kind == "stream" else kind.route.method, PREFIX + kind.route.path


def test_every_route_has_a_request_and_every_request_a_route() -> None:
    assert len(REQUESTS) > 40
    assert sorted(map(place, REQUESTS)) == sorted(routes())


def test_the_openapi_document_is_made_of_the_requests(app: FastAPI) -> None:
    document = app.openapi()
    schemas = document["components"]["schemas"]
    calls = [kind for kind in REQUESTS if kind.route.kind != "stream"]
    assert sum(len(path) for path in document["paths"].values()) == len(calls)
    for kind in calls:
        call = document["paths"][PREFIX + kind.route.path][kind.route.method.lower()]
        assert call["operationId"] == kind.__name__
        assert call["description"] == inspect.getdoc(kind)
        told = {parameter["name"] for parameter in call.get("parameters", ())}
        if "requestBody" in call and not kind.route.body:
            body = schemas[kind.__name__]
            assert body["additionalProperties"] is False
            told |= set(body["properties"])
        assert told == set(kind.fields) - {kind.route.body}


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_a_request(kind: type[Request]) -> None:
    """Check that a request says what it does, and that its fields are none of its methods."""
    assert kind.__doc__
    assert isinstance(kind.route, Route)
    assert set(kind.route.in_path) <= set(kind.fields)
    assert not {name for name in kind.fields if hasattr(Request, name)}
    hints = get_type_hints(kind, localns={**vars(answers), **vars(checks)}, include_extras=True)
    for name in kind.fields:
        # A field that may be None is None by default, so that "left out" means None on the wire.
        assert getattr(kind, name, None) is None or type(None) not in getattr(hints[name], "__args__", ())


def sent_by(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls of Connection that make a request."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if node.func.attr in ("send", "send_long", "open") and owner.endswith(("api", "connection")):
                yield node


@pytest.mark.parametrize("package", ["client", "cli"])
def test_a_client_sends_requests_of_the_contract(package: str) -> None:
    """Check that each call sends an object of a class of the contract: no path and no body by hand."""
    names = {kind.__name__ for kind in REQUESTS}
    used: set[str] = set()
    for path in sorted((SOURCE / package).rglob("*.py")):
        if path.name == "connection.py":
            continue
        tree = ast.parse(path.read_text())
        made = {
            node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
        } & names
        used |= made
        sends = list(sent_by(tree))
        for call in sends:
            asked = call.args[0]
            name = ast.unparse(asked.func).rpartition(".")[2] if isinstance(asked, ast.Call) else None
            assert name in names or ast.unparse(asked) in ("request", "self._request"), ast.unparse(call)
        assert bool(made) == bool(sends) or path.name in ("hold.py",), f"{path}: {made}"
        by_hand = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        if path.name != "fast_path.py":
            assert not [text for text in by_hand if isinstance(text, str) and text.startswith("/v1/")], path
    if package == "client":
        assert {kind.__name__ for kind in REQUESTS} - used == set(), "no method of the client sends these"


def test_the_fast_path_sends_what_the_contract_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the one place that writes a request by hand: loading the contract would take longer."""
    from bough.cli import fast_path
    from bough.version import __version__

    sent: list[str] = []

    class Socket:
        def send_text(self, text: str) -> None:
            sent.append(text)

    def open_socket(target: str) -> Socket:
        sent.append(target)
        return Socket()

    monkeypatch.setattr(fast_path, "_open", open_socket)
    monkeypatch.setattr(fast_path, "await_machine", lambda _: None)
    monkeypatch.setattr(fast_path, "carry", lambda *_, **__: 0)
    words = ["sh", "-c", 'echo "a\\b"']
    assert fast_path.attempt(["exec", "web", *words]) == 0
    assert fast_path.attempt(["run", "debian:12", *words]) == 0
    command = Command(argv=words)
    exec_request = ExecInMachine(reference="web", client=__version__)
    run_request = RunInMachine(client=__version__)
    assert sent[0] == PREFIX + exec_request.render_target()
    assert json.loads(sent[1]) == command.to_dict()
    assert sent[2] == PREFIX + run_request.render_target()
    assert json.loads(sent[3]) == RunCommand(spec={"image": "debian:12"}, command=command).to_dict()
    # The ordinary code makes the path of a container image absolute.
    for image in ("oci:./layout", "oci:~/layout", "oci-archive:a.tar", "docker-archive:a.tar"):
        assert fast_path.attempt(["run", image, "true"]) is None
    for image in ("oci:nginx", "docker://nginx"):
        assert fast_path.attempt(["run", image, "true"]) == 0


def test_a_message_arrives_as_it_was_sent() -> None:
    sent = RunCommand(spec={"image": "a"}, command=Command(argv=("ls", "ä"), env={"A": "b"}), force=True)
    got = to_message(RunCommand, message_model(RunCommand).model_validate_json(sent.render()))
    assert got.to_dict() == sent.to_dict()
    assert (got.cold, got.timeout_s) == (False, None)


def test_bounds_of_other_parts() -> None:
    from bough.forks.standby import MOST

    assert checks.STANDBY_MACHINES.most == MOST


def test_path_query_and_body() -> None:
    request = MakeForks(source="web", names=("a", "b"), count=2)
    assert request.render_target() == "/forks"
    assert request.render_body() == {"source": "web", "names": ["a", "b"], "count": 2}
    assert bough.contract.machines.PauseMachine(reference="a/b").render_body() is None
    assert bough.contract.machines.StartMachine(reference="a").render_body() == {}


def test_a_wrong_field_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="needs source"):
        MakeForks()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no field sources"):
        MakeForks(source="a", sources=1)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        MakeForks(source="a").source = "b"  # type: ignore[misc]


def test_an_answer_keeps_what_it_does_not_know() -> None:
    for kind in messages_of(Answer):
        assert "raw" in kind.fields
    data = {"host": "::1", "host_port": 1, "guest_port": 2, "new": 3}
    port = answers.Port.from_dict(data)
    assert (port.host, port.raw) == ("::1", data)


def test_the_contract_is_light() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\n"
        "import bough.contract.machines, bough.contract.answers, bough.contract.commands\n"
        "heavy = {'pydantic', 'dataclasses', 'inspect', 'json', 'annotated_types', 'typing_extensions'}\n"
        "assert not heavy & (set(sys.modules) - before), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-S", "-c", code], check=True, env={"PYTHONPATH": str(SOURCE.parent)})

"""Docker's rules for a machine's program and commands."""

from __future__ import annotations

from typing import Any

import pytest

from bough.errors import InvalidInput, InvalidSpec
from bough.spec import parse_spec
from bough.spec.container import DEFAULT_PATH, Container
from bough.spec.program import (
    check_settings,
    exposed_ports,
    has_image_init,
    has_program,
    resolve_command,
    resolve_program,
    with_exposed_ports,
)


def image(**settings: Any) -> Container:
    return Container(reference="docker://docker.io/library/x:latest", digest="sha256:0", **settings)


def spec(**settings: Any) -> Any:
    return parse_spec({"image": "docker://docker.io/library/x:latest", **settings})


BOTH = image(entrypoint=("/entry",), cmd=("serve", "--all"))


@pytest.mark.parametrize(
    ("container", "settings", "arguments", "argv"),
    [
        (BOTH, {}, (), ("/entry", "serve", "--all")),
        (BOTH, {}, ("true",), ("/entry", "true")),
        (BOTH, {"command": ["one"]}, (), ("/entry", "one")),
        (BOTH, {"command": []}, (), ("/entry",)),
        (BOTH, {"command": ["one"]}, ("two",), ("/entry", "two")),
        (BOTH, {"entrypoint": ["/other"]}, (), ("/other",)),
        (BOTH, {"entrypoint": ["/other"]}, ("x",), ("/other", "x")),
        (BOTH, {"entrypoint": ["/other", "-c"], "command": ["x"]}, (), ("/other", "-c", "x")),
        (BOTH, {"entrypoint": []}, ("x", "y"), ("x", "y")),
        (image(cmd=("nginx",)), {}, (), ("nginx",)),
        (image(cmd=("nginx",)), {}, ("sh", "-c", "id"), ("sh", "-c", "id")),
        (image(cmd=("/bin/sh", "-c", "echo $A")), {}, (), ("/bin/sh", "-c", "echo $A")),
        (image(), {"command": "redis-server --port '7 7'"}, (), ("redis-server", "--port", "7 7")),
    ],
)
def test_which_program(
    container: Container, settings: dict[str, Any], arguments: tuple[str, ...], argv: tuple[str, ...]
) -> None:
    assert resolve_program(container, spec(**settings), arguments).argv == argv


@pytest.mark.parametrize(
    ("container", "settings"), [(image(), {}), (BOTH, {"entrypoint": []}), (image(cmd=("",)), {})]
)
def test_no_program_is_an_error(container: Container, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="no ENTRYPOINT and no CMD"):
        resolve_program(container, spec(**settings))


def test_the_environment_of_a_program() -> None:
    container = image(cmd=("x",), env={"A": "image", "B": "image"})
    found = resolve_program(container, spec(environment={"B": "spec"}), hostname="web")
    assert found.env == {"PATH": DEFAULT_PATH, "HOSTNAME": "web", "A": "image", "B": "spec"}
    own = image(cmd=("x",), env={"PATH": "/opt/bin", "HOSTNAME": "image"})
    assert resolve_program(own, spec(), hostname="web").env == {"PATH": "/opt/bin", "HOSTNAME": "image"}


def test_a_command_follows_the_image_and_the_caller() -> None:
    container = image(user="www", workdir="srv/app", env={"A": "image"}, stop_signal="QUIT")
    plain = resolve_command(container, spec(), ["id"])
    assert (plain.user, plain.cwd, plain.env["A"]) == ("www", "/srv/app", "image")
    changed = resolve_command(container, spec(user="1000:100", workdir="/tmp/"), ["id"])
    assert (changed.user, changed.cwd) == ("1000:100", "/tmp")
    asked = resolve_command(container, spec(user="a"), ["id"], env={"A": "b"}, user="root", cwd="/etc")
    assert (asked.user, asked.cwd, asked.env["A"]) == ("root", "/etc", "b")
    assert resolve_command(container, spec(), ["id"], cwd="sub").cwd == "/srv/app/sub"
    assert resolve_program(container, spec(), ["x"]).stop_signal == "QUIT"
    assert resolve_command(image(), spec(), ["id"]).cwd == "/"
    assert resolve_command(image(), spec(), ["id"]).user is None


@pytest.mark.parametrize(
    ("container", "settings", "is_image"),
    [
        (image(cmd=("/sbin/init",)), {}, True),
        (image(entrypoint=("/usr/lib/systemd/systemd", "--system")), {}, True),
        (image(cmd=("/sbin/init",)), {"init": "bough"}, False),
        (image(cmd=("/sbin/init",)), {"command": ["bash"]}, False),
        (BOTH, {}, False),
        (BOTH, {"init": "image"}, True),
        (image(), {}, False),
    ],
)
def test_which_init(container: Container, settings: dict[str, Any], is_image: bool) -> None:
    assert has_image_init(container, spec(**settings)) is is_image
    assert has_program(container, spec(**settings)) is not is_image
    assert not has_program(None, spec(**settings))


def test_settings_that_need_a_container_image() -> None:
    asked = spec(entrypoint=["x"], command=[], user=0, workdir="/x", init="bough", publish_exposed=True)
    assert asked.user == "0"
    check_settings(asked, BOTH)
    check_settings(parse_spec({"image": "debian:12"}), None)
    with pytest.raises(InvalidSpec) as told:
        check_settings(asked, None)
    places = [one["place"] for one in told.value.problems]
    assert places == ["entrypoint", "command", "user", "workdir", "init", "publish_exposed"]
    assert "needs a container image" in told.value.problems[0]["message"]
    with pytest.raises(InvalidSpec, match="no program"):
        check_settings(spec(init="image"), image())


def test_exposed_ports_are_published_once() -> None:
    container = image(ports=("80/tcp", "443", "53/udp", "80/tcp", "0/tcp", "99999/tcp", "x/tcp"))
    assert exposed_ports(container) == [80, 443]
    made = with_exposed_ports(spec(publish_exposed=True, ports=["8443:443"]), container)
    assert [(port.host_port, port.guest_port) for port in made.ports] == [(8443, 443), (0, 80)]
    assert with_exposed_ports(spec(), container).ports == ()
    assert with_exposed_ports(spec(publish_exposed=True), None).ports == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entrypoint": "a 'b"}, "closed quotes"),
        ({"command": ["a\0"]}, "words without NUL"),
        ({"command": 5}, "list of words"),
        ({"command": ["", "x"]}, "a program first"),
        ({"user": "a b"}, "expected a user like"),
        ({"user": "a:b:c"}, "expected a user like"),
        ({"user": -1}, "expected a user like"),
        ({"workdir": "srv"}, "absolute path of a directory"),
        ({"init": "systemd"}, "'auto', 'image', 'bough'"),
    ],
)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as told:
        spec(**settings)
    assert message in str(told.value.problems[0]["message"])

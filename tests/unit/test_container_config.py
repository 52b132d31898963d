"""The configuration of a container image: what of it a machine gets, and what a hostile one is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bough.errors import BadImage
from bough.images.oci.config import ImageConfig, read_config

REFERENCE = "docker://docker.io/library/nginx:latest"
DIGEST = "sha256:" + "12" * 32
LAYER = "sha256:" + "34" * 32


def read(config: Any = None, **image: Any) -> ImageConfig:
    image = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"diff_ids": [LAYER]},
        "config": config,
    } | image
    return read_config(json.dumps(image).encode(), REFERENCE, DIGEST)


def refused(config: Any = None, **image: Any) -> str:
    with pytest.raises(BadImage) as told:
        read(config, **image)
    return told.value.message


def test_all_that_a_program_needs() -> None:
    found = read(
        {
            "Entrypoint": ["/docker-entrypoint.sh"],
            "Cmd": ["nginx", "-g", "daemon off;"],
            "Env": ["PATH=/usr/bin", "A=b=c", "EMPTY=", "BARE", "A=later", "LINES=a\nb"],
            "User": "web:101",
            "WorkingDir": "/srv/www/",
            "StopSignal": "SIGQUIT",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "443": {}, "8000-8002/tcp": {}},
            "Volumes": {"/var/lib/data": {}, "cache": {}},
            "Labels": {"org.opencontainers.image.title": "nginx"},
            "Healthcheck": {
                "Test": ["CMD", "curl", "-f", "http://localhost/"],
                "Interval": 3_000_000_000,
                "Timeout": 1,
                "StartPeriod": 500_000_000,
                "Retries": 2,
            },
        }
    )
    container = found.container
    assert (container.reference, container.digest) == (REFERENCE, DIGEST)
    assert container.entrypoint == ("/docker-entrypoint.sh",)
    assert container.cmd == ("nginx", "-g", "daemon off;")
    assert container.env == {"PATH": "/usr/bin", "A": "later", "EMPTY": "", "BARE": "", "LINES": "a\nb"}
    assert (container.user, container.workdir, container.stop_signal) == ("web:101", "/srv/www", "QUIT")
    assert container.ports == ("80/tcp", "53/udp", "443/tcp", "8000/tcp", "8001/tcp", "8002/tcp")
    assert container.volumes == ("/var/lib/data", "/cache")
    assert container.labels == {"org.opencontainers.image.title": "nginx"}
    assert container.healthcheck == {
        "test": ["CMD", "curl", "-f", "http://localhost/"],
        "interval": 3.0,
        "timeout": 0.05,
        "start_period": 0.5,
        "retries": 2,
    }
    assert (found.arch, found.layers, found.notes) == ("x86_64", (LAYER,), ())


@pytest.mark.parametrize("config", [None, {}, {"Entrypoint": None, "Cmd": None, "Env": None, "User": ""}])
def test_an_image_may_say_nothing(config: Any) -> None:
    container = read(config).container
    assert (container.entrypoint, container.cmd, container.env, container.user) == ((), (), {}, "")
    assert (container.workdir, container.stop_signal, container.healthcheck) == ("", "TERM", None)


def test_forms_of_old_docker_images() -> None:
    assert read({"Entrypoint": "/bin/app"}).container.entrypoint == ("/bin/app",)
    assert read(architecture="").arch == ""


@pytest.mark.parametrize(
    ("signal", "name"),
    [("SIGTERM", "TERM"), ("int", "INT"), ("9", "9"), ("SIGRTMIN+3", "RTMIN+3"), ("RTMAX-1", "RTMAX-1")],
)
def test_stop_signals(signal: str, name: str) -> None:
    assert read({"StopSignal": signal}).container.stop_signal == name


def test_healthchecks() -> None:
    def check(**given: Any) -> Any:
        return read({"Healthcheck": given}).container.healthcheck

    assert check(Test=["NONE"]) is None
    assert check(Test=[]) is None
    assert check(Test=["CMD-SHELL", "test -e /x"]) == {"test": ["CMD", "/bin/sh", "-c", "test -e /x"]}
    with_shell = {"Healthcheck": {"Test": ["CMD-SHELL", "x"]}, "Shell": ["/bin/bash", "-ec"]}
    assert read(with_shell).container.healthcheck == {"test": ["CMD", "/bin/bash", "-ec", "x"]}
    assert check(Test=["CMD", "x"], Interval=0, Retries=0) == {"test": ["CMD", "x"]}


def test_too_many_ports_are_told_and_left_out() -> None:
    found = read({"ExposedPorts": {"1-60000/udp": {}, "80": {}}})
    assert found.container.ports == ("80/tcp",)
    assert "1-60000/udp" in found.notes[0]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"Entrypoint": {"a": 1}}, "Entrypoint: expected a list of texts, got a table"),
        ({"Cmd": ["a", 5]}, r"Cmd[1]: expected text, got 5"),
        ({"Cmd": ["a\0b"]}, "Cmd[0]: expected at most"),
        ({"Cmd": ["a"] * 5000}, "Cmd: 5000 entries, more than the limit of 4096"),
        ({"Env": ["=x"]}, "Env[0]: expected NAME=VALUE, got '=x'"),
        ({"Env": ["A\nB=x"]}, "Env[0]: expected NAME=VALUE"),
        ({"Env": "A=b"}, "Env: expected a list of texts, got 'A=b'"),
        ({"Env": ["A=" + "b" * 200_000]}, "Env[0]: expected at most 131072 characters"),
        ({"User": "a b"}, "User: expected a user"),
        ({"User": "a:b:c"}, "User: expected a user"),
        ({"User": "4294967296"}, "User: expected a user"),
        ({"User": 0}, "User: expected text, got 0"),
        ({"WorkingDir": "/" + "a" * 5000}, "WorkingDir: expected at most 4096"),
        ({"StopSignal": "SIGNOPE"}, "StopSignal: expected a signal like SIGTERM or 15, got 'SIGNOPE'"),
        ({"StopSignal": "65"}, "StopSignal: expected a signal"),
        ({"StopSignal": "RTMIN+99"}, "StopSignal: expected a signal"),
        ({"ExposedPorts": {"0/tcp": {}}}, "ExposedPorts: expected a port like 80/tcp, got '0/tcp'"),
        ({"ExposedPorts": {"99999": {}}}, "ExposedPorts: expected a port"),
        ({"ExposedPorts": ["80"]}, "ExposedPorts: expected an object, got a list"),
        ({"Volumes": {"/a\0": {}}}, "Volumes: expected at most"),
        ({"Labels": {"a": 1}}, "Labels['a']: expected text, got 1"),
        ({"Healthcheck": {"Test": "true"}}, "Healthcheck.Test: expected a list of texts"),
        (
            {"Healthcheck": {"Test": ["CMD", "x"], "Interval": "3s"}},
            "Healthcheck.Interval: expected a number",
        ),
        ({"Healthcheck": {"Test": ["CMD", "x"], "Interval": -1}}, "Healthcheck.Interval: expected a number"),
        ({"Healthcheck": {"Test": ["CMD", "x"], "Interval": 2**62}}, "Healthcheck: not a usable"),
        ({"Healthcheck": {"Test": ["CMD", "x"], "Retries": True}}, "Healthcheck.Retries: expected a number"),
        ({"Healthcheck": {"Test": ["RUN", "x"]}}, "Healthcheck.Test: expected CMD or CMD-SHELL"),
        ({"Healthcheck": {"Test": ["CMD"]}}, "Healthcheck.Test: expected CMD or CMD-SHELL"),
        ({"Healthcheck": {"Test": ["CMD", ""]}}, "Healthcheck: not a usable"),
        ([], "config: expected an object, got a list"),
    ],
)
def test_hostile_configurations(config: Any, told: str) -> None:
    assert told in refused(config)


def test_all_problems_are_told_at_once() -> None:
    told = refused({"User": "a b", "Cmd": [5], "StopSignal": "x"}, os="windows", architecture="s390x")
    assert REFERENCE in told
    for part in ("Windows".lower(), "s390x", "User", "Cmd[0]", "StopSignal"):
        assert part in told


@pytest.mark.parametrize(
    ("rootfs", "told"),
    [
        (None, "rootfs: expected an object"),
        ({"diff_ids": ["sha256:x"]}, "rootfs.diff_ids[0]: expected sha256:"),
        ({"diff_ids": [LAYER] * 1001}, "more than the limit of 1000"),
    ],
)
def test_hostile_lists_of_layers(rootfs: Any, told: str) -> None:
    assert told in refused(rootfs=rootfs)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"\xff{}",
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"null",
        b"1" * 5000,
    ],
)
def test_text_that_is_no_configuration(text: bytes) -> None:
    with pytest.raises(BadImage, match=r"is not (valid JSON in UTF-8|a JSON object)"):
        read_config(text, REFERENCE, DIGEST)


def test_a_text_that_is_too_large() -> None:
    with pytest.raises(BadImage, match="more than the limit"):
        read_config(b" " * (5 << 20), REFERENCE, DIGEST)

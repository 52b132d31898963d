"""Options that docker run has, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from bough.cli.spec import spec_of, spec_options
from bough.errors import InvalidInput


def data_of(*words: str) -> dict[str, Any]:
    """Return the spec of `bough create x WORDS`."""
    found: dict[str, Any] = {}

    @click.command()
    @spec_options
    def command(**given: Any) -> None:
        given.pop("force")
        found.update(spec_of("x", given).data)

    result = CliRunner().invoke(command, ["--no-ssh-keys", *words])
    if result.exception is not None:
        raise result.exception
    return found


def test_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "mine")
    monkeypatch.delenv("NOWHERE", raising=False)
    file = tmp_path / "env"
    file.write_text("\ufeff# a comment\n\nA=from file\n  B='quoted'\nHERE\nNOWHERE\nC=x=y\n")
    found = data_of("--env-file", str(file), "-e", "A=given", "--env", "HERE", "-e", "NOWHERE")
    assert found["environment"] == {"A": "given", "B": "'quoted'", "HERE": "mine", "C": "x=y"}
    with pytest.raises(InvalidInput, match="No such file"):
        data_of("--env-file", str(tmp_path / "none"))
    (tmp_path / "bytes").write_bytes(b"A=\xff")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        data_of("--env-file", str(tmp_path / "bytes"))


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = data_of("-v", f"{tmp_path}:/srv/a", "--volume", "./b:/srv/b:ro")["mounts"]
    assert found == [
        {"source": str(tmp_path), "target": "/srv/a", "writable": True},
        {"source": str(tmp_path / "b"), "target": "/srv/b", "writable": False},
    ]


@pytest.mark.parametrize(
    ("volume", "message", "hint"),
    [
        ("data:/var/lib/x", "no named volumes", "the machine's disk keeps /var/lib/x"),
        ("/var/lib/x", "names no directory of this host", "the machine's disk keeps /var/lib/x"),
        ("/a:/b:z", "modes ro and rw", None),
    ],
)
def test_volumes_that_bough_has_not(volume: str, message: str, hint: str | None) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        data_of("-v", volume)
    assert hint is None or hint in str(caught.value.hint)


def test_processor_time() -> None:
    assert data_of("--cpus", "1.5")["limits"] == {"cpu": "150%"}
    assert data_of("--cpus", "1.5", "--limit", "iops=9")["limits"] == {"cpu": "150%", "iops": "9"}
    for words in ("0", "-1", "nan"):
        with pytest.raises(InvalidInput, match="a number of processors"):
            data_of("--cpus", words)


def test_a_program_is_one_word() -> None:
    found = data_of("--entrypoint", "/bin/my program", "-w", "/srv", "-u", "1:2", "-P", "--init", "bough")
    assert found["entrypoint"] == ["/bin/my program"]
    assert (found["workdir"], found["user"]) == ("/srv", "1:2")
    assert (found["publish_exposed"], found["init"]) == (True, "bough")
    assert data_of("--entrypoint", "")["entrypoint"] == []

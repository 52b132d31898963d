"""Dockerfiles: the words for buildah, its output as progress, its failures. A script stands for buildah."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bough.cli.image import image
from bough.client.dockerfile import Dockerfile, built_archive, render_build
from bough.errors import BuildFailed, HostLacks, InvalidInput
from bough.progress import Progress

_BUILDAH = """#!/bin/sh
echo "$*" >> {log}
case "$1" in
bud)
    echo 'STEP 1/2: FROM scratch'
    echo 'STEP 2/2: RUN make'
    printf 'compiling \\033[31mred\\n'
    {fail}
    while [ "$1" != --iidfile ]; do shift; done
    echo sha256:abc > "$2"
    ;;
push)
    for last; do :; done
    echo archive > "${{last#docker-archive:}}"
    ;;
esac
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    place = tmp_path / "My App"
    place.mkdir()
    (place / "Dockerfile").write_text("FROM scratch\n")
    return place


def install_buildah(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: str = "") -> Path:
    program, log = tmp_path / "bin" / "buildah", tmp_path / "log"
    program.parent.mkdir()
    program.write_text(_BUILDAH.format(log=log, fail=fail))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return log


def test_words_for_buildah(tmp_path: Path) -> None:
    full = Dockerfile(Path("ctx"), "df", {"A": "b c"}, "stage", "aarch64", fresh=True)
    assert render_build(full, tmp_path)[2:] == [
        *("--layers", "--force-rm", "--format", "docker", "--iidfile", str(tmp_path), "--build-arg", "A=b c"),
        *("--target", "stage", "--arch", "arm64", "--no-cache", "--file", "df", "--", "ctx"),
    ]
    assert render_build(Dockerfile(Path("-ctx")), tmp_path)[-2:] == ["--", "-ctx"]


def test_output_becomes_progress(tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install_buildah(tmp_path, monkeypatch)
    steps: list[Progress] = []
    with built_archive(Dockerfile(context), "app", steps.append) as archive:
        assert archive.read_text() == "archive\n"
        assert archive.name == "my-app.tar"
    assert not archive.parent.exists()
    assert Progress("STEP 2/2: RUN make", 0.5) in steps
    assert Progress("STEP 2/2: RUN make", 0.5, "compiling [31mred") in steps
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["bud", "push"]


def test_failure_carries_step_and_output(
    tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_buildah(tmp_path, monkeypatch, fail="echo no compiler; exit 7")
    with pytest.raises(BuildFailed) as caught, built_archive(Dockerfile(context), "app"):
        pass
    assert caught.value.message == "the image app could not be built: STEP 2/2: RUN make failed"
    assert caught.value.output.endswith("no compiler")


def test_without_buildah(context: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostLacks) as caught, built_archive(Dockerfile(context), "app"):
        pass
    assert "apt install buildah" in str(caught.value.hint)


def test_missing_files(tmp_path: Path, context: Path) -> None:
    for wrong in (
        Dockerfile(tmp_path / "none"),
        Dockerfile(tmp_path),
        Dockerfile(context, str(tmp_path / "x")),
    ):
        with pytest.raises(InvalidInput):
            wrong.check()
    Dockerfile(tmp_path, "-").check()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name what to build"),
        (["debian:12", "-t", "x", "--build-arg", "A=1"], "-t, --build-arg: only for a Dockerfile"),
        (["-f", "Dockerfile", "--mirror", "http://x"], "--mirror: only for packages"),
    ],
)
def test_options_that_do_not_fit(words: list[str], said: str) -> None:
    result = CliRunner().invoke(image, ["build", *words])
    assert result.exit_code == 2
    assert said in result.output

"""Dockerfiles by the host's buildah, and recipes on container images."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Cli, write

pytestmark = pytest.mark.skipif(
    shutil.which("buildah") is None or shutil.which("skopeo") is None,
    reason="buildah or skopeo is not installed",
)

MEMORY = "128MiB"
#: RUN needs a container of buildah, which many test hosts cannot have: chroot is enough here.
_DOCKERFILE = """\
FROM scratch AS base
ARG WHO=nobody
COPY busybox /bin/busybox
RUN ["/bin/busybox", "ln", "-s", "busybox", "/bin/sh"]
RUN /bin/busybox mkdir -p /etc && /bin/busybox echo "made for $WHO" > /etc/who
FROM base AS app
ENV LEVEL=image
HEALTHCHECK CMD ["/bin/busybox", "true"]
ENTRYPOINT ["/bin/busybox"]
CMD ["cat", "/etc/who"]
FROM app AS unused
ENV LEVEL=unused
"""


@pytest.fixture(scope="module")
def app(
    cli: Cli, agent_disk: Path, boot_kit: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Yield the label of an image that was built from a Dockerfile. No machine has booted from it."""
    context = tmp_path_factory.mktemp("context")
    with (context / "busybox").open("wb") as stream:
        subprocess.run(["unsquashfs", "-cat", agent_disk, "bin/busybox"], check=True, stdout=stream)
    (context / "busybox").chmod(0o755)
    write(context / "Containerfile", _DOCKERFILE)
    storage = tmp_path_factory.mktemp("storage")
    places = f'graphroot = "{storage}/images"\nrunroot = "{storage}/run"\n'
    write(storage / "storage.conf", f'[storage]\ndriver = "vfs"\n{places}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUILDAH_ISOLATION", "chroot")
        patch.setenv("CONTAINERS_STORAGE_CONF", str(storage / "storage.conf"))
        chosen = ("--file", context / "Containerfile", "--target", "app", "--build-arg", "WHO=tests")
        cli("image", "build", context, "-t", "app:1", *chosen, timeout_s=300)
    yield "app:1"
    cli("image", "delete", "app:1", check=False)


def test_a_dockerfile_becomes_an_image(cli: Cli, app: str) -> None:
    found = cli.json("image", "info", app)
    container = found["container"]
    assert (container["entrypoint"], container["cmd"]) == (["/bin/busybox"], ["cat", "/etc/who"])
    assert container["env"]["LEVEL"] == "image"
    assert container["healthcheck"] is not None
    assert found["labels"] == ["app:1"]


def test_a_recipe_changes_a_container_image(cli: Cli, app: str, images: list[str], tmp_path: Path) -> None:
    images.append("more")
    recipe = write(
        tmp_path / "more.toml",
        f'base = "{app}"\ncommands = ["busybox tr a-z A-Z < /srv/page > /etc/who"]\n'
        'environment = { LEVEL = "recipe" }\n[[files]]\npath = "/srv/page"\ncontent = "of the recipe"\n',
    )
    digest = cli.text("image", "build", recipe, timeout_s=300)
    assert cli.text("image", "build", recipe, timeout_s=20) == digest
    assert cli.json("image", "info", "more")["container"]["entrypoint"] == ["/bin/busybox"]
    assert cli.text("run", "-m", MEMORY, "more", timeout_s=300).strip() == "OF THE RECIPE"
    assert cli.text("run", "-m", MEMORY, "more", "--", "sh", "-c", "echo $LEVEL").strip() == "recipe"


def test_packages_without_apt_are_refused(cli: Cli, app: str, tmp_path: Path) -> None:
    recipe = write(tmp_path / "apt.toml", f'base = "{app}"\npackages = ["nginx"]\n')
    cli.error("image", "build", recipe, says="need apt-get, which this image lacks")


def test_a_dockerfile_that_fails(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "Dockerfile", "FROM scratch\nCOPY missing /\n")
    told = cli.error(
        "image", "build", "-f", tmp_path / "Dockerfile", tmp_path, says="STEP 2/2: COPY missing /"
    )
    assert "no such file" in told

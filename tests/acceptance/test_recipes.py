"""Images by recipe, and layers upon them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.conftest import Cli, write


@pytest.mark.long
def test_layers_upon_an_image(cli: Cli, debian: str, images: list[str], tmp_path: Path) -> None:
    images.append("web")
    (tmp_path / "page").write_text("hello\n")
    # Upon the image that is here already, by its digest: this test is not about mmdebstrap.
    digest = cli.text("image", "build", debian)
    web = write(
        tmp_path / "web.toml",
        f'base = "{digest}"\nsize = "9GiB"\ncommands = ["tr a-z A-Z < /srv/page > /srv/PAGE"]\n'
        '[[files]]\npath = "/srv/page"\nsource = "page"\n[[users]]\nname = "joe"\n',
    )
    first = cli.text("image", "build", web)
    assert cli.text("image", "build", web, timeout_s=5) == first, "nothing has changed"
    script = "cat /srv/PAGE /srv/page; id -un joe; df --output=size -BG / | tail -1; cat /etc/hostname"
    told = cli.text("run", "--memory", "512MiB", "web", "--", "sh", "-c", script).split()
    assert told[:3] == ["HELLO", "hello", "joe"]
    assert told[3] == "9G"
    ids = {cli.text("run", "--memory", "512MiB", "web", "--", "cat", "/etc/machine-id") for _ in range(2)}
    assert len(ids) == 2, "two machines of one image are two machines"

    before = {image["digest"] for image in cli.json("image", "list")}
    failing = write(
        tmp_path / "failing.toml", 'base = "web"\ncommands = ["cat /srv/PAGE; ls /nowhere; exit 3"]\n'
    )
    told_failing = cli.error("image", "build", failing, says="failing")
    assert "HELLO" in told_failing, "it does not stand on the recipe before it"
    assert "/nowhere" in told_failing, "its output is missing"
    wrong = write(tmp_path / "wrong.toml", 'base = "web"\ncomands = []\nkernel = "linux-image-amd64"\n')
    told_wrong = cli.error("image", "build", wrong, says="comands")
    assert "kernel" in told_wrong
    cli.error("image", "build", tmp_path / "absent.toml", says="absent.toml")
    assert {image["digest"] for image in cli.json("image", "list")} == before
    # What was kept of its boot, for those runs, goes with it.
    cli("image", "delete", "web")
    assert cli.json("doctor", "--store")["clean"]

"""Images by recipe, and layers over them."""

from __future__ import annotations

import os
from pathlib import Path

import bough
from bough.images.apt import ADD_SOURCES, ASKED, FILTER_PATH, source_files
from bough.images.recipes import SCRIPTS
from bough.spec import SourceSpec
from tests.acceptance.conftest import Cli, write


def test_layers_upon_an_image(cli: Cli, debian: str, images: list[str], tmp_path: Path) -> None:
    images.append("web")
    (tmp_path / "page").write_text("hello\n")
    # The base is the existing image, by its digest: this test does not need mmdebstrap.
    digest = cli.text("image", "build", debian)
    web = write(
        tmp_path / "web.toml",
        f'base = "{digest}"\nsize = "9GiB"\ncommands = ["tr a-z A-Z < /srv/page > /srv/PAGE"]\n'
        '[[files]]\npath = "/srv/page"\nsource = "page"\n[[users]]\nname = "joe"\n'
        '[[files]]\npath = "/root/.ssh/authorized_keys"\nmode = "0600"\ncontent = "# of the recipe\\n"\n',
    )
    first = cli.text("image", "build", web)
    again = cli.text("image", "build", web, "--arch", os.uname().machine, timeout_s=5)
    assert again == first, "nothing has changed"
    script = "cat /srv/PAGE /srv/page; id -un joe; df --output=size -BG / | tail -1; cat /etc/hostname; "
    script += "head -n 1 /root/.ssh/authorized_keys"
    told = cli.text("run", "--memory", "512MiB", "web", "--", "sh", "-c", script).split()
    assert told[:3] == ["HELLO", "hello", "joe"]
    assert told[3] == "9G"
    assert told[5:] == ["#", "of", "the", "recipe"], "keys that a recipe writes stay"
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
    # The booted snapshot for those runs is deleted with the image.
    cli("image", "delete", "web")
    assert cli.json("doctor", "--store")["clean"]


def test_sources_that_the_guest_has_are_not_added(fork: bough.Machine) -> None:
    """The sources are those that apt in the guest knows, whatever they are."""
    listed = "apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)'"
    told = fork.shell(listed, check=True).stdout
    uri, suite = told.splitlines()[0].split()
    same = SourceSpec(name="same", uri=uri, suites=(suite,))
    more = SourceSpec(name="more", uri=uri, suites=(suite, f"{suite}-more"), types=("deb", "deb-src"))
    files = source_files([same, more], ASKED) | {FILTER_PATH: (SCRIPTS / "new_sources.awk").read_text()}
    for path, text in files.items():
        fork.write_file(path, text)
    fork.shell(ADD_SOURCES, check=True)
    assert fork.shell("ls /etc/apt/sources.list.d").stdout.split() == ["more.sources"]
    assert f"Suites: {suite}-more" in fork.read_text("/etc/apt/sources.list.d/more.sources")
    assert not fork.shell("apt-get indextargets --no-release-info 2>&1 | grep multiple").stdout

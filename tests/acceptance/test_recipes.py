"""Images by recipe, layers upon them, and an image with cloud-init up to a machine that answers."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.publisher import Signer, serve_directory
from tests.waiting import wait_until

CATALOGUE = """
format = 1
serial = 99991231
[keys.publisher]
fingerprints = ["{fingerprint}"]
address = "{url}/key.asc"
[[images]]
names = ["published:1"]
title = "published here"
os = "debian"
version = "12"
[[images.files]]
arch = "{arch}"
address = "{url}/cloud.qcow2"
checksums = "{url}/SHA256SUMS"
signature = "{url}/SHA256SUMS.gpg"
key = "publisher"
"""


@pytest.fixture
def images(cli: Cli) -> Iterator[list[str]]:
    names: list[str] = []
    yield names
    for name in reversed(names):
        cli("image", "delete", name, check=False)
    cli("image", "prune")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.xdist_group("layers")
def test_layers_upon_an_image(cli: Cli, debian: str, images: list[str], tmp_path: Path) -> None:
    images += ["web", "more"]
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
    more = write(tmp_path / "more.toml", 'base = "web"\ncommands = ["cat /srv/* > /srv/all"]\n')
    cli("image", "build", more)
    script = "cat /srv/all; id -un joe; df --output=size -BG / | tail -1; cat /etc/hostname"
    told = cli.text("run", "--memory", "512MiB", "more", "--", "sh", "-c", script).split()
    assert told[:3] == ["HELLO", "hello", "joe"]
    assert told[3] == "9G"
    ids = {cli.text("run", "--memory", "512MiB", "more", "--", "cat", "/etc/machine-id") for _ in range(2)}
    assert len(ids) == 2, "two machines of one image are two machines"
    # What was kept of its boot, for those runs, goes with it.
    cli("image", "delete", "more")
    assert cli.json("doctor", "--store")["clean"]

    before = cli.text("image", "list")
    failing = write(
        tmp_path / "failing.toml", 'base = "web"\ncommands = ["echo so far; ls /nowhere; exit 3"]\n'
    )
    assert "/nowhere" in cli.error("image", "build", failing, says="failing"), "its output is missing"
    wrong = write(tmp_path / "wrong.toml", 'base = "web"\ncomands = []\nkernel = "linux-image-amd64"\n')
    told_wrong = cli.error("image", "build", wrong, says="comands")
    assert "kernel" in told_wrong
    cli.error("image", "build", tmp_path / "absent.toml", says="absent.toml")
    assert cli.text("image", "list").splitlines()[0] == before.splitlines()[0]
    assert "failing" not in cli.text("image", "list")


@pytest.mark.xdist_group("cloud image")
@pytest.mark.timeout(1200)
def test_a_cloud_image_end_to_end(
    cli: Cli, bough_home: Home, images: list[str], gone: list[str], tmp_path: Path
) -> None:
    images += ["source", "cloud"]
    recipe = write(
        tmp_path / "source.toml",
        'base = "debian:12"\npackages = ["cloud-init"]\nagent = false\ncloud_init = true\n',
    )
    built = cli.json("image", "build", recipe)
    assert not built["agent"]
    assert "cloud-init" in built["packages"]
    site = tmp_path / "site"
    site.mkdir()
    qcow2 = site / "cloud.qcow2"
    disk = bough_home.image(built["digest"]).disk
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, qcow2], check=True)
    with qcow2.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    publisher = Signer(tmp_path / "gpg")
    (site / "SHA256SUMS").write_text(f"{sha256} *cloud.qcow2\n")
    (site / "SHA256SUMS.gpg").write_bytes(publisher.sign((site / "SHA256SUMS").read_bytes()))
    (site / "key.asc").write_text(publisher.armour)
    publisher.end()
    with serve_directory(site) as url:
        (site / "catalogue.toml").write_text(
            CATALOGUE.format(url=url, fingerprint=publisher.fingerprint, arch=built["arch"])
        )
        cli("image", "catalogue", "update", "--from", f"{url}/catalogue.toml")
        assert "published:1" in cli.text("image", "search", "published")
        cli.error("image", "pull", "publshed:1", says="publshed:1", hint="published:1")
        cli("image", "pull", "published:1", "--name", "cloud")
        cli("image", "catalogue", "reset")
    assert "published:1" not in cli.text("image", "search")
    gone.append("cloudy")
    user_data = write(
        tmp_path / "user-data",
        "#cloud-config\nwrite_files:\n- path: /root/from-user\n  content: mine\nruncmd:\n- touch /root/ran\n",
    )
    cli("create", "cloud", "--name", "cloudy", "--memory", "768MiB", "--disk", "10GiB",
        "--user-data", user_data, "--user", "joe")  # fmt: skip
    cli("start", "cloudy", "--timeout", "600s", timeout_s=620)
    script = "cat /root/from-user; echo; ls /root/ran; hostname; id -un joe; cloud-init status"
    told = cli.text("exec", "cloudy", "--", "sh", "-c", script).splitlines()
    assert told[:4] == ["mine", "/root/ran", "cloudy", "joe"]
    assert "done" in told[4]
    cli("restart", "cloudy", timeout_s=400)
    assert cli.text("exec", "cloudy", "--", "echo", "again") == "again"
    cli.error("create", "debian:12", "--user-data", user_data, says="cloud-init", hint="--cloud-init")


@pytest.mark.xdist_group("foreign agent")
def test_a_foreign_disk_with_qemu_guest_agent(
    cli: Cli, bough_home: Home, images: list[str], gone: list[str], tmp_path: Path
) -> None:
    """As it comes from another hypervisor, whose machine booted it by UEFI."""
    images += ["foreign", "source"]
    gone.append("foreign")
    recipe = write(
        tmp_path / "source.toml",
        'base = "debian:12"\npackages = ["qemu-guest-agent"]\nagent = false\n',
    )
    disk, vmdk = bough_home.image(cli.json("image", "build", recipe)["digest"]).disk, tmp_path / "disk.vmdk"
    convert = [
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        "subformat=streamOptimized",
        disk,
        vmdk,
    ]
    subprocess.run(convert, check=True)
    cli("image", "import", vmdk, "--firmware", "uefi", "--name", "foreign")
    cli("create", "foreign", "--name", "foreign", "--memory", "512MiB")
    assert cli.json("info", "foreign")["hardware"]["firmware"] == "uefi"
    cli("start", "foreign")
    wait_until(lambda: cli.json("info", "foreign")["agent"] == "qemu-guest-agent", timeout_s=150)
    assert cli.text("exec", "foreign", "--", "ls", "-d", "/sys/firmware/efi") == "/sys/firmware/efi"
    wait_until(lambda: "login:" in cli.text("logs", "foreign"), timeout_s=60)
    done = cli("exec", "foreign", "--", "sh", "-c", "echo out; echo err >&2; pwd; exit 3", check=False)
    assert (done.returncode, done.stderr) == (3, b"err\n")
    assert done.stdout.startswith(b"out\n")
    assert cli.text("exec", "-u", "nobody", "foreign", "--", "id", "-un") == "nobody"
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4096)
    cli("cp", tmp_path / "file", "foreign:/root/file")
    cli("cp", "foreign:/root/file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    cli.error("exec", "-t", "foreign", "--", "sh", says="terminal", hint="console")
    assert cli("screenshot", "foreign", "-").stdout.startswith(b"\x89PNG")
    cli("stop", "foreign", "--deadline", "40s")
    assert cli.json("info", "foreign")["state"] == "stopped"

"""Foreign images, with cloud-init and from another hypervisor, up to machines that answer."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bough.paths import Home
from tests.acceptance.conftest import Cli, write
from tests.publisher import Signer, serve_directory
from tests.waiting import wait_until

#: A file of cloud-init's renderer for networkd: in a fork it must name the fork's card.
FOLLOWED = "grep -qi $(cat /sys/class/net/e*/address) /etc/systemd/network/10-cloud-init*.network"
RECIPE = """
base = "debian:12"
packages = ["cloud-init", "qemu-guest-agent"]
agent = false
cloud_init = true
"""
#: Start qemu-guest-agent at the second serial port, too.
SERIAL_UNIT = r"""
cat >/etc/systemd/system/qga-serial.service <<END
[Service]
ExecStart=/usr/sbin/qemu-ga -m isa-serial -p /dev/ttyS1
[Install]
WantedBy=multi-user.target
END
systemctl enable qga-serial
sync
"""
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


@pytest.fixture(scope="module")
def built(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Yield an image like a distributor's, without bough's agent or anything else of bough."""
    recipe = write(tmp_path_factory.mktemp("recipe") / "source.toml", RECIPE)
    yield cli.json("image", "build", recipe)
    cli("image", "delete", "source", check=False)


@pytest.fixture
def disk(built: dict[str, Any], bough_home: Home) -> Path:
    return bough_home.image(built["digest"]).disk


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_cloud_image_end_to_end(
    cli: Cli, built: dict[str, Any], disk: Path, images: list[str], gone: list[str], tmp_path: Path
) -> None:
    images.append("cloud")
    assert not built["agent"]
    assert "cloud-init" in built["packages"]
    site = tmp_path / "site"
    site.mkdir()
    qcow2 = site / "cloud.qcow2"
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
        "\ufeff#cloud-config\nwrite_files:\n- path: /root/from-user\n  content: mine\n"
        "runcmd:\n- echo ran >> /root/ran\npower_state:\n  mode: reboot\n",
    )
    # User-data as some tools write it: packed, with a byte order mark. The guest reboots during the first
    # boot.
    user_data.write_bytes(gzip.compress(user_data.read_bytes()))
    cli("create", "cloud", "--name", "cloudy", "--memory", "768MiB", "--disk", "10GiB",
        "--user-data", user_data, "--user", "joe", "--mount", f"{site}:/srv/site")  # fmt: skip
    cli("start", "cloudy", "--timeout", "600s", timeout_s=620)
    script = "cat /root/from-user; echo; cat /root/ran; hostname; id -un joe; cloud-init status"
    told = cli.text("exec", "cloudy", "--", "sh", "-c", script).splitlines()
    assert told[:4] == ["mine", "ran", "cloudy", "joe"]
    assert "done" in told[4]
    assert sha256 in cli.text("exec", "cloudy", "--", "cat", "/srv/site/SHA256SUMS")
    # A fork is not configured a second time, and cloud-init's file about the card names the fork's card.
    gone.append("rainy")
    cli("fork", "cloudy", "rainy")
    cli("exec", "rainy", "--", "sh", "-c", f"until {FOLLOWED}; do sleep 0.2; done", timeout_s=60)
    cli("restart", "rainy", timeout_s=400)
    # After a restart the agent answers before cloud-init has written what `query` reads.
    script = "cloud-init status --wait >/dev/null; cat /root/ran; hostname; "
    script += "cloud-init query instance_id; cloud-init query local_hostname; "
    script += f"{FOLLOWED} && echo its card; ip -4 -o address show scope global | wc -l"
    told = cli.text("exec", "rainy", "--", "sh", "-c", script).splitlines()
    instance = cli.text("exec", "cloudy", "--", "cloud-init", "query", "instance_id")
    assert told == ["ran", "rainy", instance, "rainy", "its card", "1"]
    cli.error("create", "debian:12", "--user-data", user_data, says="cloud-init", hint="--cloud-init")


@pytest.mark.long
def test_a_foreign_disk_with_qemu_guest_agent(
    cli: Cli, disk: Path, images: list[str], gone: list[str], tmp_path: Path
) -> None:
    """The disk is from another hypervisor, whose machine booted it by UEFI."""
    images.append("foreign")
    gone.append("foreign")
    vmdk = tmp_path / "disk.vmdk"
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*convert, disk, vmdk], check=True)
    cli("image", "import", vmdk, "--firmware", "uefi", "--name", "foreign", "--no-agent")
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
    cli("exec", "foreign", "--", "sh", "-c", SERIAL_UNIT)
    cli("stop", "foreign", "--deadline", "40s")
    assert cli.json("info", "foreign")["state"] == "stopped"
    # The same guest without virtio for the agent and the network.
    images.append("serial")
    gone.append("serial")
    cli("export", "foreign", tmp_path / "serial.qcow2")
    hardware = ("--agent-port", "serial", "--nic-model", "e1000", "--firmware", "uefi")
    cli("image", "import", tmp_path / "serial.qcow2", "--name", "serial", "--no-agent", *hardware)
    cli("create", "serial", "--name", "serial", "--memory", "512MiB")
    cli("start", "serial")
    wait_until(lambda: cli.json("info", "serial")["agent"] == "qemu-guest-agent", timeout_s=150)
    assert "e1000" in cli.text("exec", "serial", "--", "sh", "-c", "readlink /sys/class/net/e*/device/driver")
    cli("cp", tmp_path / "file", "serial:/root/again")
    cli("cp", "serial:/root/again", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()

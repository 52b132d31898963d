"""Export and import: a bundle of a machine, running or not, and disks for other hypervisors."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

import bough
from bough.bundle import read_manifest
from bough.errors import BadBundle
from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.acceptance.test_suspend import COUNTER, count
from tests.waiting import wait_until


def test_a_running_machine_goes_on_elsewhere(
    hv: bough.Hypervisor, vm: bough.Machine, cli: Cli, bough_home: Home, tmp_path: Path, gone: list[str]
) -> None:
    """Export through a pipe into another BOUGH_HOME without the image; then import altered bundles here."""
    vm.shell(COUNTER)
    wait_until(lambda: count(vm) > 1, what="the process counts")
    before, identity = count(vm), vm.exec("cat", "/etc/machine-id", "/etc/hostname").stdout
    file = tmp_path / "vm.bough"
    cli("export", vm.name, file)
    assert vm.exec("true").ok, "it does not go on here"
    assert cli.text("bundle", "info", file).startswith("{")
    other = Cli({"BOUGH_HOME": str(bough_home.root.parent / "other")})
    (bough_home.root.parent / "other").mkdir(mode=0o711)
    try:
        with file.open("rb") as stream:
            subprocess.run(
                [Path(cli_program()), "import", "-", "--name", "there"],
                stdin=stream,
                env=other.env,
                check=True,
                timeout=170,
            )
        assert int(other.text("exec", "there", "--", "cat", "/run/count")) >= before
        assert (
            other.text("exec", "there", "--", "cat", "/etc/machine-id", "/etc/hostname") == identity.strip()
        )
        assert other.json("doctor", "--store")["clean"]
    finally:
        other("delete", "there", "--force", check=False)
        subprocess.run([cli_python(), "-c", SHUTDOWN], env=other.env, check=False, timeout=60)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    cli.error("import", file, "--name", "here", says="altered")
    file.write_bytes(data[: len(data) // 2])
    cli.error("import", file, "--name", "here", says="truncated")
    cli.error("import", file, says="exists already", hint="another name")
    assert not list(bough_home.incoming.iterdir())


SHUTDOWN = "import bough.client as c; c.connect(start=False).shutdown()"


def cli_program() -> Path:
    from tests.acceptance.conftest import BOUGH

    return BOUGH


def cli_python() -> str:
    import sys

    return sys.executable


def test_suspended_and_without_its_image(
    hv: bough.Hypervisor, vm: bough.Machine, cli: Cli, bough_home: Home, tmp_path: Path, gone: list[str]
) -> None:
    vm.write_file("/run/word", "kept")
    vm.suspend()
    vm.export(tmp_path / "thin.bough", without_image=True)
    assert vm.state == "suspended"
    with (tmp_path / "thin.bough").open("rb") as stream:
        parts = read_manifest(stream)[0]["parts"]
    assert parts[0]["image"] == vm.info().image_digest
    gone.append("thin")
    machine = hv.import_bundle(tmp_path / "thin.bough", name="thin", identity="new")
    assert machine.read_text("/run/word") == "kept"
    assert machine.exec("hostname").stdout.strip() == "thin"
    with pytest.raises(BadBundle):
        hv.import_bundle(Path("/bin/true"))
    cli.error("export", "thin", tmp_path / "thin.zip", says="ends in none of")
    vm.resume()


def test_for_other_hypervisors(hv: bough.Hypervisor, vm: bough.Machine, cli: Cli, tmp_path: Path) -> None:
    cli("export", vm.name, tmp_path / "vm.ova")
    with tarfile.open(tmp_path / "vm.ova") as archive:
        assert archive.getnames() == [f"{vm.name}.ovf", "disk0.vmdk", f"{vm.name}.mf"]
    try:
        hv.import_image(tmp_path / "vm.ova", name="of-an-ova")
    finally:
        hv.delete_image("of-an-ova")
    cli("export", vm.name, tmp_path / "vm.qcow2")
    subprocess.run(["qemu-img", "check", "-q", tmp_path / "vm.qcow2"], check=True)
    try:
        image = cli.json("image", "import", tmp_path / "vm.qcow2", "--name", "of-a-qcow2")
        assert (image["agent"], image["lived"], image["os"]) == ("installed", True, "debian")
    finally:
        hv.delete_image("of-a-qcow2")


def test_an_export_comes_back_as_a_machine_of_ours(
    cli: Cli, debian: str, images: list[str], gone: list[str], tmp_path: Path
) -> None:
    """The machine has two disks, one of them grown, and gets a new identity."""
    gone += ["two", "back"]
    images.append("back")
    cli("create", debian, "--name", "two", "--memory", "512MiB", "--extra-disk", "64MiB")
    cli("start", "two", "--until", "booted")  # udev has made the links of the disks
    disk = "/dev/disk/by-id/virtio-disk1"
    write = f"printf kept > {disk}; echo mine > /root/word; sync; cat /etc/machine-id; stat -c %s /root/word"
    before = cli.text("exec", "two", "--", "sh", "-c", write).split()
    cli("export", "two", tmp_path / "two.ova")
    cli("delete", "two", "--force")
    image = cli.json("image", "import", tmp_path / "two.ova", "--name", "back")
    assert (image["agent"], image["lived"], image["os"]) == ("installed", True, "debian")
    assert len(image["disks"]) == 1
    more = ["--disk", "10GiB", "--user", "joe", "--extra-disk", "32MiB"]
    cli("create", "back", "--name", "back", "--memory", "512MiB", *more)
    cli("start", "back", "--until", "booted")
    script = f"cat /etc/machine-id; hostname; head -c 4 {disk}; echo; cat /root/word; id -un joe; "
    script += "df --output=size -BG / | tail -n 1; lsblk --nodeps --noheadings --bytes --output size,type"
    after = cli.text("exec", "back", "--", "sh", "-c", script).split()
    assert after[0] != before[0]
    assert after[1:6] == ["back", "kept", "mine", "joe", "10G"]
    assert after[6:] == [str(10 << 30), "disk", str(64 << 20), "disk", str(32 << 20), "disk"]
    cli.error("image", "delete", "back", says="used by back")

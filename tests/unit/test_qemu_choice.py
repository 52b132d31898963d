"""The choice of an accelerator, a machine type and a CPU model, from "auto" or a name."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bough.errors import HostLacks, InvalidInput, InvalidSpec
from bough.qemu import probe_guest
from bough.qemu.accelerators import Accelerator, complete_cpus, newest_complete_cpu
from bough.qemu.arch import ARCHITECTURES, architecture, version_key
from bough.qemu.binary import QemuFacts, parse_version
from bough.qemu.choice import (
    accelerator_note,
    choose_accelerator,
    choose_boot_cpu,
    choose_cpu_model,
    choose_machine_type,
    parse_firmware,
)
from bough.qemu.host import user_name
from bough.qemu.packages import render_fix, render_fixes
from bough.qemu.plan import resolve_clock

FACTS = QemuFacts(
    machine_types=(
        "microvm",
        "none",
        "pc",
        "pc-i440fx-7.2",
        "pc-q35-10.0",
        "pc-q35-7.2",
        "pc-q35-9.2",
        "q35",
    ),
    cpu_models=("EPYC", "Haswell", "Nehalem", "max"),
)
TCG = Accelerator("tcg", True, "ran", "Nehalem")
KVM = Accelerator("kvm", True, "ran", "EPYC")
NO_KVM = Accelerator("kvm", False, "/dev/kvm is missing", "")
DOUBTFUL_KVM = Accelerator("kvm", False, "a probe guest did not finish", "EPYC", tried=True, lasts_s=600)
CLOSED_KVM = Accelerator("kvm", False, "/dev/kvm may not be opened", "", refused=True)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("auto", "pc-q35-10.0"),
        ("q35", "pc-q35-10.0"),
        ("pc-q35-7.2", "pc-q35-7.2"),
        ("pc-i440fx", "pc-i440fx-7.2"),
    ],
)
def test_machine_types(wanted: str, expected: str) -> None:
    assert choose_machine_type(wanted, FACTS, "x86_64") == expected


def test_rhel_has_its_own_versions() -> None:
    facts = QemuFacts(("pc-q35-rhel8.6.0", "pc-q35-rhel9.4.0"), ())
    assert choose_machine_type("auto", facts, "x86_64") == "pc-q35-rhel9.4.0"


@pytest.mark.parametrize("wanted", ["pc-q35-7.3", "microvm", "none", "vax"])
def test_an_unknown_machine_type_is_one_clear_problem(wanted: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        choose_machine_type(wanted, FACTS, "x86_64")
    (problem,) = caught.value.problems
    assert problem["place"] == "machine_type"
    assert wanted in problem["message"]
    assert problem["hint"]


def test_cpu_models() -> None:
    assert choose_cpu_model("auto", FACTS, TCG) == "Nehalem"
    assert choose_cpu_model("auto", FACTS, KVM) == "EPYC"
    assert choose_cpu_model("Haswell", FACTS, TCG) == "Haswell"
    with pytest.raises(InvalidSpec) as caught:
        choose_cpu_model("hasvell", FACTS, TCG)
    assert "'Haswell'" in caught.value.problems[0]["hint"]


EMULATED = architecture("x86_64").tcg_cpu


@pytest.mark.parametrize(
    ("wanted", "kept", "accelerator", "chosen"),
    [
        pytest.param("auto", EMULATED, KVM, "EPYC", id="emulated before, on KVM now"),
        pytest.param("auto", "EPYC,model=9,model-id=emulated", KVM, "EPYC", id="of an earlier bough"),
        pytest.param("auto", "EPYC-Rome,svm=off", TCG, "Nehalem", id="on KVM before, emulated now"),
        pytest.param("auto", EMULATED, TCG, None, id="emulated as before"),
        pytest.param("auto", "EPYC-Rome,svm=off", KVM, None, id="on KVM as before"),
        pytest.param("auto", "Opteron_G1", KVM, None, id="not a choice of auto"),
        pytest.param(EMULATED, EMULATED, KVM, None, id="asked for"),
    ],
)
def test_the_cpu_of_auto_belongs_to_its_accelerator(
    wanted: str, kept: str, accelerator: Accelerator, chosen: str | None
) -> None:
    assert choose_boot_cpu(wanted, kept, "x86_64", accelerator) == chosen


def test_accelerators() -> None:
    assert choose_accelerator("auto", {"kvm": KVM, "tcg": TCG}) is KVM
    assert choose_accelerator("auto", {"kvm": NO_KVM, "tcg": TCG}) is TCG
    with pytest.raises(HostLacks, match="is missing"):
        choose_accelerator("kvm", {"kvm": NO_KVM, "tcg": TCG})
    with pytest.raises(HostLacks):
        choose_accelerator("auto", {"kvm": NO_KVM})
    assert choose_accelerator("auto", {"kvm": DOUBTFUL_KVM, "tcg": TCG}) is TCG
    assert choose_accelerator("kvm", {"kvm": DOUBTFUL_KVM, "tcg": TCG}) is DOUBTFUL_KVM
    with pytest.raises(HostLacks, match="may not be opened"):
        choose_accelerator("kvm", {"kvm": CLOSED_KVM, "tcg": TCG})


@pytest.mark.parametrize(
    ("wanted", "kvm", "says"),
    [
        ("auto", KVM, None),
        ("auto", NO_KVM, None),
        ("auto", DOUBTFUL_KVM, "10 to 30 times slower"),
        ("auto", CLOSED_KVM, "may not be opened"),
        ("tcg", DOUBTFUL_KVM, None),
        ("kvm", DOUBTFUL_KVM, "may not work on this host: a probe guest did not finish"),
    ],
)
def test_what_a_fallback_costs_is_told(wanted: str, kvm: Accelerator, says: str | None) -> None:
    accelerators = {"kvm": kvm, "tcg": TCG}
    note = accelerator_note(wanted, choose_accelerator(wanted, accelerators), accelerators)
    assert note is None if says is None else says in (note or "")


def test_newest_complete_cpu() -> None:
    row = architecture("x86_64")
    definitions = [
        {"name": "SapphireRapids", "unavailable-features": ["amx-tile"]},
        {"name": "Nehalem", "unavailable-features": []},
        {"name": "Haswell-noTSX-IBRS", "unavailable-features": []},
        {"name": "host", "unavailable-features": []},
    ]
    assert newest_complete_cpu(row, complete_cpus(definitions)) == "Haswell-noTSX-IBRS"
    assert newest_complete_cpu(row, complete_cpus(definitions[:1])) is None


def test_versions_are_ordered_as_numbers() -> None:
    assert version_key("pc-q35-10.0") > version_key("pc-q35-9.2")
    assert parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)") == (7, 2, 22)
    assert parse_version("QEMU emulator version 10.0.0") == (10, 0, 0)
    with pytest.raises(HostLacks):
        parse_version("busybox")


def test_unknown_architecture() -> None:
    with pytest.raises(InvalidInput, match="vax"):
        architecture("vax")


def description(**changes: object) -> dict[str, object]:
    return {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": "/code.fd", "format": "raw"},
            "nvram-template": {"filename": "/vars.fd", "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3"],
        **changes,
    }


def test_firmware_descriptions() -> None:
    found = parse_firmware(description(), "x86_64", "pc-q35-7.2")
    assert found is not None
    assert (found.code, found.variables_template) == ("/code.fd", "/vars.fd")
    assert parse_firmware(description(), "aarch64", "virt-7.2") is None
    assert parse_firmware(description(features=["requires-smm"]), "x86_64", "pc-q35-7.2") is None
    assert parse_firmware(description(**{"interface-types": ["bios"]}), "x86_64", "pc-q35-7.2") is None
    with pytest.raises(KeyError):
        parse_firmware({}, "x86_64", "pc-q35-7.2")


def test_clock() -> None:
    now = datetime(2024, 2, 29, 12, 0, tzinfo=UTC)
    assert resolve_clock("utc", None) == "utc"
    assert resolve_clock("local", None) == "localtime"
    assert resolve_clock("-1d", -86400.0, now=now) == "2024-02-28T12:00:00"


def test_install_commands() -> None:
    fixes = render_fixes("qemu-x86_64")
    assert set(fixes) == {"apt", "dnf", "pacman", "zypper"}
    assert fixes["apt"].endswith("apt-get install qemu-system-x86")
    assert "pacman" not in render_fixes("mmdebstrap")
    assert "install" in render_fix("passt")


#: The commands are at the head of each source; not every host has binutils of a foreign processor.
BINUTILS = {
    "x86_64": ("", ["--64"], ["-Ttext", "0xffff0000"]),
    "i386": ("", ["--32"], ["-m", "elf_i386", "-Ttext", "0xffff0000"]),
    "aarch64": ("aarch64-linux-gnu-", [], ["-Ttext", "0"]),
    "riscv64": ("riscv64-linux-gnu-", [], ["-Ttext", "0x80000000"]),
}


@pytest.mark.parametrize("arch", sorted(BINUTILS))
def test_the_probe_guest_is_its_source(arch: str, tmp_path: Path) -> None:
    prefix, assemble, link = BINUTILS[arch]
    if not shutil.which(f"{prefix}ld"):
        pytest.skip(f"needs binutils for {arch}")
    guest = probe_guest.PROBE_GUESTS[arch]
    source = Path(probe_guest.__file__).with_name(guest.source)

    def run(program: str, *words: str | Path) -> None:
        subprocess.run([prefix + program, *words], cwd=tmp_path, check=True, capture_output=True)

    run("as", *assemble, "-o", "guest.o", source)
    run("ld", "-N", *link, "-o", "guest.elf", "guest.o")
    run("objcopy", "-O", "binary", "-j", ".text", "guest.elf", "guest.bin")
    assert (tmp_path / "guest.bin").read_bytes() == guest.firmware


VIRT = QemuFacts(("none", "virt", "virt-10.0", "virt-7.2"), ("neoverse-n1",))


def test_versioned_where_there_are_versions() -> None:
    assert choose_machine_type("auto", VIRT, "aarch64") == "virt-10.0"
    assert choose_machine_type("virt-7.2", VIRT, "aarch64") == "virt-7.2"
    assert choose_machine_type("auto", QemuFacts(("sifive_u", "virt"), ()), "riscv64") == "virt"
    assert choose_machine_type("auto", FACTS, "i386") == "pc-i440fx-7.2"
    with pytest.raises(InvalidSpec):
        choose_machine_type("pc-q35-7.2", VIRT, "aarch64")


@pytest.mark.parametrize(("arch", "host"), [("aarch64", "x86_64"), ("riscv64", "x86_64"), ("x86_64", "i686")])
def test_kvm_runs_no_foreign_processor(arch: str, host: str) -> None:
    assert host not in architecture(arch).hosts


def test_a_64_bit_pc_runs_a_32_bit_one() -> None:
    assert "x86_64" in architecture("i386").hosts


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_has_a_package_for_what_it_needs(arch: str) -> None:
    assert render_fixes(f"qemu-{arch}")["apt"]
    assert render_fixes(f"uefi-{arch}")


def test_uefi_of_another_processor() -> None:
    virt = [{"architecture": "aarch64", "machines": ["virt-*"]}]
    found = parse_firmware(description(targets=virt, features=["verbose-static"]), "aarch64", "virt-7.2")
    assert found is not None
    assert parse_firmware(description(targets=virt, features=["secure-boot"]), "aarch64", "virt-7.2") is None


def test_hints_name_the_user_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert user_name() == pwd.getpwuid(os.geteuid()).pw_name

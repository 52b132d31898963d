"""Machine type, CPU model, accelerator and firmware: "auto" or a name -> full name in the present QEMU.

bough chooses full names once, at a machine's creation: another QEMU or host must present the same computer.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bough.errors import HostLacks, InvalidSpec
from bough.qemu.accelerators import Accelerator
from bough.qemu.arch import Architecture, architecture, version_key
from bough.qemu.binary import QemuFacts
from bough.qemu.packages import render_fix

#: Part of each emulated CPU of a PC, also in records of earlier versions of bough.
_EMULATED_MARK = "model-id=emulated"


def choose_accelerator(wanted: str, accelerators: Mapping[str, Accelerator]) -> Accelerator:
    """Return the fastest working accelerator for "auto", or the requested accelerator. A requested
    accelerator is used even if the probe guest did not run: `accelerator_note` warns.

    Raises:
        HostLacks: the requested accelerator cannot work on this host, or no accelerator works.
    """
    if wanted == "auto":
        usable = [found for found in accelerators.values() if found.usable]
        if usable:
            return usable[0]
        said = "; ".join(f"{found.name}: {found.detail}" for found in accelerators.values())
        raise HostLacks(f"no accelerator works on this host ({said})", hint="bough doctor")
    found = accelerators[wanted]
    if not found.usable and not found.tried:
        raise HostLacks(f"{wanted} does not work on this host: {found.detail}", hint=_instead(wanted))
    return found


def accelerator_note(wanted: str, chosen: Accelerator, accelerators: Mapping[str, Accelerator]) -> str | None:
    """Return a warning about the choice: a machine without KVM is 10 to 30 times slower."""
    if not chosen.usable:
        return f"{chosen.name} was asked for, and may not work on this host: {chosen.detail}"
    kvm = accelerators.get("kvm")
    if wanted != "auto" or chosen.name == "kvm" or kvm is None or not (kvm.tried or kvm.refused):
        return None
    return f"the machine is emulated (TCG), 10 to 30 times slower than with KVM: {kvm.detail}"


def _instead(wanted: str) -> str:
    return "use accelerator tcg (slower), or auto" if wanted == "kvm" else "bough doctor tells more"


def choose_machine_type(wanted: str, facts: QemuFacts, arch: str) -> str:
    """Return a versioned type if QEMU has them: the newest for "auto" and for a family ("q35", "pc-q35").

    Raises:
        InvalidSpec: this QEMU has no such type, or bough cannot run it.
    """
    row = architecture(arch)
    known = [name for name in facts.machine_types if _family(name, row) is not None]
    if wanted in known:
        return wanted
    for family in row.machine:
        if wanted in ("auto", family, family.removeprefix("pc-")):
            of_family = [name for name in known if _family(name, row) == family]
            if of_family:
                return max(of_family, key=version_key)
    if wanted == "auto":
        raise HostLacks(
            f"this QEMU has no machine of the family {row.machine[0]}", hint=render_fix(f"qemu-{arch}")
        )
    raise _unknown("machine_type", f"this QEMU has no machine {wanted!r} for {arch}", wanted, known)


def _family(name: str, row: Architecture) -> str | None:
    if not row.versioned:
        return name if name in row.machine else None
    family, dash, version = name.rpartition("-")
    # pc-q35-rhel9.4.0 is a version too.
    if not dash or not any(digit.isdigit() for digit in version):
        return None
    return family if family in row.machine else None


def choose_cpu_model(wanted: str, facts: QemuFacts, accelerator: Accelerator) -> str:
    """Return the CPU model. Raises InvalidSpec if QEMU does not know the model."""
    if wanted == "auto":
        return accelerator.cpu_model
    model = wanted.partition(",")[0]
    if model not in facts.cpu_models:
        raise _unknown("cpu", f"this QEMU knows no CPU model {model!r}", model, facts.cpu_models)
    return wanted


def choose_boot_cpu(wanted: str, kept: str, arch: str, accelerator: Accelerator) -> str | None:
    """Return the CPU model for a boot, if "auto" chose the kept model for the other accelerator; None: boot
    with the kept model.

    An emulated CPU reports in-order execution, so that Linux leaves out workarounds (docs/decisions/0011). A
    real processor needs these workarounds.
    """
    row = architecture(arch)
    if wanted != "auto":
        return None
    is_emulated = kept == row.tcg_cpu or _EMULATED_MARK in kept
    is_other = is_emulated if accelerator.name == "kvm" else kept in row.kvm_cpus
    return accelerator.cpu_model if is_other else None


def _unknown(place: str, message: str, wanted: str, known: Iterable[str]) -> InvalidSpec:
    known = list(known)
    by_case = {name.lower(): name for name in known}
    close = get_close_matches(wanted.lower(), by_case, n=1)
    hint = f"did you mean {by_case[close[0]]!r}?" if close else "'auto' takes the best one"
    problem = {"place": place, "message": message, "hint": hint}
    return InvalidSpec(f"{place}: {message}", hint=hint, problems=[problem])


@dataclass(frozen=True)
class FirmwareFiles:
    """UEFI firmware: the shared read-only code, and the template of each machine's variables; None: no
    persistent variables.
    """

    code: str
    variables_template: str | None


#: Directories of firmware descriptions (QEMU's docs/interop/firmware.json).
_FIRMWARE_DIRECTORIES = ("/etc/qemu/firmware", "/usr/local/share/qemu/firmware", "/usr/share/qemu/firmware")


#: Features of a firmware that starts only signed loaders.
_SECURE = {"requires-smm", "secure-boot", "enrolled-keys"}
#: Directories of SeaBIOS in distributions; a QEMU built elsewhere has its own.
_BIOS_DIRECTORIES = ("/usr/share/seabios", "/usr/share/qemu", "/usr/local/share/qemu")
_BIOS = "bios-256k.bin"


def find_bios(qemu: str) -> str | None:
    """Return SeaBIOS for the program `qemu`; None: QEMU finds a BIOS itself."""
    own = Path(qemu).resolve().parent.parent / "share" / "qemu"
    found = (directory / _BIOS for directory in (own, *map(Path, _BIOS_DIRECTORIES)))
    return next((str(path.resolve()) for path in found if path.is_file()), None)


def find_uefi(arch: str, machine_type: str, *, secure: bool = False) -> FirmwareFiles:
    """Return the UEFI that the host's distribution prefers.

    Args:
        secure: a UEFI with Secure Boot and the usual keys, or one without.

    Raises:
        HostLacks: none is installed.
    """
    row = architecture(arch)
    if row.uboot:
        code = next((path for path in row.uboot if Path(path).exists()), None)
        if code is None:
            raise HostLacks(
                f"no UEFI firmware (U-Boot) for {arch} is installed", hint=render_fix(f"uefi-{arch}")
            )
        return FirmwareFiles(code, None)
    for path in _descriptions():
        try:
            found = parse_firmware(json.loads(path.read_bytes()), arch, machine_type, secure=secure)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a broken description: try the next one
        if found and all(file and Path(file).exists() for file in (found.code, found.variables_template)):
            return found
    kind = "UEFI firmware with Secure Boot" if secure else "UEFI firmware"
    raise HostLacks(f"no {kind} for {arch} is installed", hint=render_fix(f"uefi-{arch}"))


def _descriptions() -> list[Path]:
    """Return the descriptions in the order of their file names: "40-..." before "60-..."."""
    found: dict[str, Path] = {}
    for directory in _FIRMWARE_DIRECTORIES:
        for path in Path(directory).glob("*.json"):
            found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def parse_firmware(
    description: dict[str, Any], arch: str, machine_type: str, *, secure: bool = False
) -> FirmwareFiles | None:
    """Return the firmware of a description; None for other machines, or for another UEFI than a plain one, or
    one with Secure Boot, in flash.

    Raises KeyError, TypeError if the data is no description.
    """
    mapping = description["mapping"]
    features = set(description["features"])
    more = features & _SECURE
    wanted = more == _SECURE if secure else not more
    fits = any(
        target["architecture"] == arch
        and any(fnmatch.fnmatchcase(machine_type, pattern) for pattern in target["machines"])
        for target in description["targets"]
    )
    if "uefi" not in description["interface-types"] or mapping["device"] != "flash" or not wanted or not fits:
        return None
    if mapping.get("mode", "split") != "split" or mapping["executable"]["format"] != "raw":
        return None
    return FirmwareFiles(mapping["executable"]["filename"], mapping["nvram-template"]["filename"])

"""Plan -> command line of QEMU. Pure; one small function per device.

All settings are explicit, so that another process, a later QEMU or another host can load a snapshot. Examples
are -nodefaults, a versioned machine, a named CPU and single block nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bough.qemu.arch import Architecture, architecture
from bough.qemu.block import DiskNode, escape, render_option
from bough.qemu.disk_bus import IDE_CD, render_controllers, render_devices
from bough.qemu.nic import render_nics
from bough.qemu.plan import DiskPlan, MediumPlan, Plan
from bough.units import MIB

_LEAST_CODE_MIB = 128
_MOST_CODE_MIB = 1024

#: Name of the guest's RAM block, on the command line and in QMP.
RAM_ID = "ram"
#: Sockets bound by bough and passed as descriptors; `info --plan` shows the numbers.
DISPLAYED_DESCRIPTORS = {"qmp": 3, "agent": 4, "console": 5, "uplink": 6, "memory": 7, "tpm": 8}

#: QEMU's own seccomp filter, complete.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


#: Interfaces of Hyper-V (QEMU's docs/system/i386/hyperv.rst) that KVM of Linux 5.10 has, and that migrate.
#: Windows counts its time with them, instead of reading emulated timers.
_HYPERV = (
    "hv-relaxed",
    "hv-vapic",
    "hv-spinlocks=0x1fff",
    "hv-vpindex",
    "hv-runtime",
    "hv-synic",
    "hv-stimer",
    "hv-time",
    "hv-frequencies",
    "hv-tlbflush",
    "hv-ipi",
)


def render_argv(plan: Plan, descriptors: Mapping[str, int] = DISPLAYED_DESCRIPTORS) -> list[str]:
    """Return the command line, `plan.qemu` first.

    Args:
        descriptors: their numbers in QEMU. "qmp", "agent" and "console" are listening sockets. "uplink" is
            the connected socket with passt, "tpm" the one with swtpm. "memory" is the memory of a template.
    """
    arch = architecture(plan.arch)
    parts: list[Sequence[str]] = [
        [plan.qemu, "-nodefaults", "-no-user-config", "-display", "none"],
        _sandbox(plan),
        _identity(plan, arch),
        _machine(plan, arch),
        _processors(plan),
        _memory(plan, descriptors),
        _incoming(plan),
        _firmware(plan),
        _direct_boot(plan),
        _clock(plan),
        _monitor(descriptors["qmp"]),
        _console(arch, descriptors["console"]),
        _agent_port(descriptors["agent"], plan),
        *_disks(plan),
        *(_medium(medium, arch) for medium in plan.media),
        _display(plan, arch),
        _nics(plan, descriptors),
        _entropy(),
        _clone_notice(plan, arch),
        _panic_notice(arch),
        _tpm(plan, arch, descriptors),
    ]
    return [word for part in parts for word in part]


def option(first: str, **values: str | int | None) -> str:
    """QEMU's key=value syntax; "_" in a key stands for "-".

    >>> option("guest", name="a,b")
    'guest,name=a,,b'
    """
    return render_option(first, {key.rstrip("_").replace("_", "-"): value for key, value in values.items()})


def _sandbox(plan: Plan) -> list[str]:
    return ["-sandbox", SANDBOX] if plan.jail.system_calls else []


def _identity(plan: Plan, arch: Architecture) -> list[str]:
    smbios = option("type=1", manufacturer="bough", product="virtual machine", serial=plan.machine_id)
    # OEM strings, which guest/agent_init_setup.py reads.
    words = ["type=11", *(f"value=bough.init={escape(word)}" for word in plan.image_init)]
    return [
        *("-name", option(f"guest={escape(plan.name)}", debug_threads="on")),
        *("-uuid", plan.uuid),
        *(("-smbios", smbios) if arch.has_smbios else ()),
        *(("-smbios", ",".join(words)) if arch.has_smbios and plan.image_init else ()),
    ]


def _machine(plan: Plan, arch: Architecture) -> list[str]:
    # dump-guest-core, mem-merge: no guest memory in a core file, and no sharing of memory between guests by
    # KSM. suppress-vmdesc: device states without the unused description.
    options = [
        plan.machine_type,
        *arch.machine_options,
        f"memory-backend={RAM_ID}",
        "dump-guest-core=off",
        "mem-merge=off",
        "suppress-vmdesc=on",
    ]
    if plan.firmware.secure:
        options += ["smm=on"]
    if plan.firmware.variables is not None:
        options += ["pflash0=firmware-code", "pflash1=firmware-variables"]
    elif plan.firmware.kind == "bios" and plan.firmware.code is not None:
        options += ["pflash0=firmware-code"]
    return ["-machine", ",".join(options), "-boot", "strict=on", "-action", "panic=none"]


def _processors(plan: Plan) -> list[str]:
    accelerator = "kvm"
    if plan.accelerator == "tcg":
        # Bound of translated code: a quarter of the guest's memory. QEMU's own bound is 1 GiB, and the boot
        # of a small guest alone fills 400 MiB with code that runs once.
        code_mib = min(max(plan.memory_bytes // 4 // MIB, _LEAST_CODE_MIB), _MOST_CODE_MIB)
        accelerator = f"tcg,thread=multi,tb-size={code_mib}"
    topology = option(f"cpus={plan.vcpus}", sockets=1, cores=plan.vcpus, threads=1)
    cpu = plan.cpu_model
    if plan.hyperv and plan.accelerator == "kvm":
        cpu = ",".join((cpu, *_HYPERV))
    return ["-accel", accelerator, "-cpu", cpu, "-smp", topology]


def _memory(plan: Plan, descriptors: Mapping[str, int]) -> list[str]:
    if plan.from_template:
        # Unwritten pages come from the template; written pages are private to the process. The file is sealed
        # and has no name (see ram.py), so QEMU gets a descriptor.
        path = f"/proc/self/fd/{descriptors['memory']}"
        backend = option(
            "memory-backend-file",
            id=RAM_ID,
            size=plan.memory_bytes,
            mem_path=path,
            share="off",
            prealloc="off",
        )
    else:
        backend = option("memory-backend-ram", id=RAM_ID, size=plan.memory_bytes, share="off")
    return ["-object", backend]


def _incoming(plan: Plan) -> list[str]:
    """Expect a device state only: a stream without a migration's configuration section."""
    if not plan.from_template:
        return []
    return ["-incoming", "defer", "-S", "-global", "migration.send-configuration=off"]


def _firmware(plan: Plan) -> list[str]:
    firmware = plan.firmware
    if firmware.code is None:
        return []
    if firmware.kind == "bios":
        # In flash, filled by QEMU at the start. QEMU's usual way to load a BIOS expects a migration to bring
        # the BIOS (hw/core/loader.c, rom_reset): a machine continued from a snapshot could not reboot.
        return DiskNode("firmware-code", firmware.code, "raw", read_only=True).arguments()
    if firmware.variables is None:  # U-Boot: QEMU's OpenSBI starts it like a kernel
        return [] if plan.direct_boot else ["-kernel", firmware.code]
    secure = ["-global", "driver=cfi.pflash01,property=secure,value=on"] if firmware.secure else []
    return [
        *DiskNode("firmware-code", firmware.code, "raw", read_only=True).arguments(),
        *DiskNode("firmware-variables", firmware.variables, "raw").arguments(),
        *secure,
    ]


def _direct_boot(plan: Plan) -> list[str]:
    boot = plan.direct_boot
    if boot is None:
        return []
    words = ["-kernel", boot.kernel]
    if boot.initrd is not None:
        words += ["-initrd", boot.initrd]
    return words + (["-append", boot.cmdline] if boot.cmdline else [])


def _clock(plan: Plan) -> list[str]:
    return ["-rtc", option(f"base={plan.clock}", clock="host")]


def _monitor(descriptor: int) -> list[str]:
    return [*_socket("qmp", descriptor), "-mon", option("", chardev="qmp", mode="control")]


def _console(arch: Architecture, descriptor: int) -> list[str]:
    if arch.console is None:
        return [*_socket("console", descriptor), "-serial", "chardev:console"]
    return [*_socket("console", descriptor), "-device", option(arch.console, chardev="console")]


def _agent_port(descriptor: int, plan: Plan) -> list[str]:
    if plan.agent_on_serial:
        return [*_socket("agent", descriptor), "-device", "isa-serial,id=agent,chardev=agent"]
    ports = f"virtio-serial-pci,id=ports,max_ports={plan.serial_ports}"
    port = option("virtserialport", id="agent", chardev="agent", name=plan.agent_port)
    return [*_socket("agent", descriptor), "-device", ports, "-device", port]


def _socket(name: str, descriptor: int) -> list[str]:
    return ["-chardev", option("socket", id=name, fd=descriptor, server="on", wait="off")]


def _disks(plan: Plan) -> list[list[str]]:
    has_ide_cd = any(medium.on_ide for medium in plan.media)
    controllers = render_controllers(
        {disk.bus for disk in plan.disks},
        machine_type=plan.machine_type,
        queues=plan.disk_queues,
        has_ide_cd=has_ide_cd,
    )
    devices = render_devices(
        plan.disks, first_boot_index=plan.boot_index, queues=plan.disk_queues, has_ide_cd=has_ide_cd
    )
    pairs = zip(plan.disks, devices, strict=True)
    return [controllers, *([*_disk_nodes(disk), *device] for disk, device in pairs)]


def _disk_nodes(disk: DiskPlan) -> list[str]:
    words: list[str] = []
    below: str | None = None
    for depth, layer in reversed(list(enumerate(disk.backing))):
        node = DiskNode(f"{disk.id}-base{depth}", layer.path, layer.format, read_only=True, backing=below)
        words, below = [*words, *node.arguments()], node.name
    top = DiskNode(disk.id, disk.path, disk.format, read_only=disk.read_only, discard=True, backing=below)
    return [*words, *top.arguments()]


def _medium(medium: MediumPlan, arch: Architecture) -> list[str]:
    node = DiskNode(medium.kind, medium.path, "raw", read_only=True).arguments()
    if medium.kind == "floppy":
        controller = option("isa-fdc", id="floppies", bootindexA=medium.boot_index)
        drive = option("floppy", id="floppy-device", bus="floppies.0", unit=0, drive="floppy")
    elif medium.on_ide:
        own: dict[str, str | int | None] = {
            "id": "cdrom-device",
            "drive": "cdrom",
            "bootindex": medium.boot_index,
        }
        return [*node, "-device", render_option("ide-cd", {**IDE_CD, **own})]
    else:
        # Every guest can read a CD on these: AHCI on a PC, virtio elsewhere.
        controller = f"{arch.cd_controller},id=cds"
        drive = option(
            arch.cd_drive, id="cdrom-device", bus="cds.0", drive="cdrom", bootindex=medium.boot_index
        )
    return [*node, "-device", controller, "-device", drive]


def _display(plan: Plan, arch: Architecture) -> list[str]:
    """Add a VNC server without a listener: bough hands viewers to it over QMP (add_client)."""
    if not plan.display:
        return []
    return ["-vnc", "none", *(word for device in arch.display for word in ("-device", device))]


def _nics(plan: Plan, descriptors: Mapping[str, int]) -> list[str]:
    is_jailed = plan.jail.bwrap is not None
    return render_nics(plan.nics, machine_type=plan.machine_type, jailed=is_jailed, descriptors=descriptors)


def _entropy() -> list[str]:
    # The host's generator. A generator inside QEMU would have the same state in each process of a process
    # image.
    source = "rng-random,id=entropy,filename=/dev/urandom"
    return ["-object", source, "-device", "virtio-rng-pci,rng=entropy"]


def _clone_notice(plan: Plan, arch: Architecture) -> list[str]:
    return ["-device", option("vmgenid", guid=plan.vmgenid, id="vmgenid")] if arch.has_vmgenid else []


def _tpm(plan: Plan, arch: Architecture, descriptors: Mapping[str, int]) -> list[str]:
    if plan.tpm_state is None or arch.tpm is None:
        return []
    socket = option("socket", id="tpm", fd=descriptors["tpm"])
    backend = option("emulator", id="tpm", chardev="tpm")
    return ["-chardev", socket, "-tpmdev", backend, "-device", option(arch.tpm, tpmdev="tpm")]


def _panic_notice(arch: Architecture) -> list[str]:
    return ["-device", arch.panic_device]

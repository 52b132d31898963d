"""QEMU's whole command line: a guest's hardware must not change by accident."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from bough.networks.switch_port import SwitchPort
from bough.qemu.argv import DISPLAYED_DESCRIPTORS, SANDBOX, option, render_argv
from bough.qemu.disk_bus import device_path, disk_of, find_crowded, path_of
from bough.qemu.jail import Jail
from bough.qemu.plan import DirectBoot, DiskPlan, Firmware, Layer, MediumPlan, NicPlan, Plan

PLAN = Plan(
    machine_id="0123456789abcdef",
    name="web",
    arch="x86_64",
    qemu="/usr/bin/qemu-system-x86_64",
    accelerator="tcg",
    machine_type="pc-q35-7.2",
    cpu_model="Nehalem",
    vcpus=2,
    memory_bytes=1 << 30,
    uuid="11111111-2222-4333-8444-555555555555",
    vmgenid="66666666-7777-4888-8999-aaaaaaaaaaaa",
    disks=(DiskPlan("disk0", "/m/disks/0.qcow2", "root", backing=(Layer("/i/disk.raw", "raw"),)),),
    nics=(NicPlan("52:54:00:00:00:01", "passt"),),
    jail=Jail(system_calls=True),
)

GOLDEN = f"""
/usr/bin/qemu-system-x86_64 -nodefaults -no-user-config -display none
-sandbox {SANDBOX}
-name guest=web,debug-threads=on
-uuid 11111111-2222-4333-8444-555555555555
-smbios type=1,manufacturer=bough,product=bough-virtual-machine,serial=0123456789abcdef
-machine pc-q35-7.2,vmport=off,smbus=off,sata=off,usb=off,hpet=off,graphics=off,memory-backend=ram,\
dump-guest-core=off,mem-merge=off,suppress-vmdesc=on
-boot strict=on
-action panic=none
-accel tcg,thread=multi,tb-size=256
-cpu Nehalem
-smp cpus=2,sockets=1,cores=2,threads=1
-object memory-backend-ram,id=ram,size=1073741824,share=off
-rtc base=utc,clock=host
-chardev socket,id=qmp,fd=3,server=on,wait=off -mon chardev=qmp,mode=control
-chardev socket,id=console,fd=5,server=on,wait=off -device isa-serial,chardev=console
-chardev socket,id=agent,fd=4,server=on,wait=off -device virtio-serial-pci,id=ports,max_ports=2
-device virtserialport,id=agent,chardev=agent,name=org.bough.agent
-blockdev driver=file,node-name=disk0-base0-file,filename=/i/disk.raw,read-only=on,auto-read-only=off,\
aio=threads
-blockdev driver=raw,node-name=disk0-base0,file=disk0-base0-file,read-only=on,auto-read-only=off
-blockdev driver=file,node-name=disk0-file,filename=/m/disks/0.qcow2,read-only=off,auto-read-only=off,\
discard=unmap,aio=threads
-blockdev driver=qcow2,node-name=disk0,file=disk0-file,read-only=off,auto-read-only=off,discard=unmap,\
backing=disk0-base0
-device virtio-blk-pci,id=disk0-device,drive=disk0,serial=root,bootindex=1,write-cache=on
-netdev stream,id=uplink,addr.type=fd,addr.str=6
-device virtio-net-pci,id=uplink-device,netdev=uplink,mac=52:54:00:00:00:01,romfile=,guest_announce=off
-object rng-random,id=entropy,filename=/dev/urandom -device virtio-rng-pci,rng=entropy
-device vmgenid,guid=66666666-7777-4888-8999-aaaaaaaaaaaa,id=vmgenid
-device pvpanic
""".replace("bough-virtual-machine", "virtual machine")


def words(argv: list[str]) -> str:
    return " ".join(argv)


def test_golden() -> None:
    assert words(render_argv(PLAN)) == " ".join(GOLDEN.split())


def test_descriptors_are_the_callers() -> None:
    argv = words(render_argv(PLAN, {"qmp": 20, "agent": 21, "console": 22, "uplink": 23}))
    for expected in ("id=qmp,fd=20", "id=agent,fd=21", "id=console,fd=22", "addr.str=23"):
        assert expected in argv


@pytest.mark.parametrize(
    ("change", "has", "has_not"),
    [
        ({"accelerator": "kvm", "cpu_model": "EPYC"}, ["-accel kvm -cpu EPYC"], ["tcg"]),
        ({"nics": ()}, [], ["netdev", "virtio-net"]),
        ({"nics": (NicPlan("52:54:00:00:00:01", "user"),)}, ["-netdev user,id=uplink,ipv6=off"], ["stream"]),
        (
            {"nics": (NicPlan("52:54:00:00:00:01", "isolated"),)},
            ["-netdev hubport,id=uplink,hubid=0"],
            ["stream", "-netdev user"],
        ),
        (
            {"nics": (NicPlan("52:54:00:00:00:01", "isolated", model="e1000"),)},
            ["-device e1000,id=uplink-device,netdev=uplink,mac=52:54:00:00:00:01,romfile= "],
            ["guest_announce", "virtio-net"],
        ),
        ({"jail": Jail()}, [], ["-sandbox"]),
        ({"clock": "2020-02-29T12:00:00"}, ["-rtc base=2020-02-29T12:00:00,clock=host"], []),
        ({"disks": ()}, [], ["-blockdev"]),
        ({"disk_queues": 2}, ["bootindex=1,num-queues=2"], []),
        (
            {"direct_boot": DirectBoot("/k", "/i", "console=ttyS0 a=b,c")},
            ["-kernel /k -initrd /i -append console=ttyS0 a=b,c"],
            [],
        ),
        ({"direct_boot": DirectBoot("/k")}, ["-kernel /k"], ["-initrd", "-append"]),
        (
            {"firmware": Firmware("uefi", "/code.fd", "/m/disks/firmware.fd")},
            [
                "pflash0=firmware-code,pflash1=firmware-variables",
                "node-name=firmware-code-file,filename=/code.fd,read-only=on",
                "node-name=firmware-variables-file,filename=/m/disks/firmware.fd,read-only=off",
            ],
            [],
        ),
    ],
)
def test_a_change_of_plan(change: dict[str, object], has: list[str], has_not: list[str]) -> None:
    argv = words(render_argv(replace(PLAN, **change)))  # type: ignore[arg-type]
    assert [word for word in has if word not in argv] == []
    assert [word for word in has_not if word in argv] == []


SECOND = NicPlan("52:54:00:00:00:02", "switch", id="nic1", place=1, port=SwitchPort("/r/net/b"))
THIRD = NicPlan("52:54:00:00:00:03", "isolated", id="nic2", place=2, model="e1000e")


def argv_of_nics(*nics: NicPlan, jail: Jail = PLAN.jail, machine_type: str = "pc-q35-7.2") -> str:
    plan = replace(PLAN, nics=(*PLAN.nics, *nics), jail=jail, machine_type=machine_type)
    plain = set(render_argv(PLAN))
    return words([word for word in render_argv(plan) if word not in plain])


def test_more_cards_have_pci_ports_of_their_own() -> None:
    assert argv_of_nics(SECOND, THIRD) == (
        "pcie-root-port,id=nic1-port,bus=pcie.0,addr=0x1e.0,multifunction=on,chassis=1 "
        "pcie-root-port,id=nic2-port,bus=pcie.0,addr=0x1e.1,multifunction=on,chassis=2 "
        "dgram,id=nic1,local.type=unix,local.path=/r/net/b/nic.sock,"
        "remote.type=unix,remote.path=/r/net/b/switch.sock "
        "virtio-net-pci,id=nic1-device,netdev=nic1,mac=52:54:00:00:00:02,romfile=,bus=nic1-port,"
        "guest_announce=off "
        "hubport,id=nic2,hubid=2 "
        "e1000e,id=nic2-device,netdev=nic2,mac=52:54:00:00:00:03,romfile=,bus=nic2-port"
    )


def test_a_card_stays_in_its_place_when_another_one_is_removed() -> None:
    argv = argv_of_nics(THIRD)
    assert "id=nic1-port" in argv, "a guest looks for function 1 only behind function 0"
    assert "netdev=nic2,mac=52:54:00:00:00:03,romfile=,bus=nic2-port" in argv


def test_cards_of_a_pc_without_pci_express() -> None:
    argv = argv_of_nics(THIRD, machine_type="pc-i440fx-7.2")
    assert "pci-bridge,id=nic-bridge,bus=pci.0,addr=0x1e,chassis_nr=1,shpc=off" in argv
    assert "romfile=,bus=nic-bridge,addr=2" in argv


def test_the_path_of_a_port_is_short_in_the_jail() -> None:
    argv = argv_of_nics(SECOND, jail=Jail(bwrap="/usr/bin/bwrap", system_calls=True))
    assert "local.path=/run/bough-ports/nic1/nic.sock" in argv
    assert "remote.path=/run/bough-ports/nic1/switch.sock" in argv
    assert "/r/net/b" not in argv


def devices_of(*buses: str, **change: object) -> list[str]:
    """Return the devices of disks on these buses, and their controllers."""
    disks = tuple(DiskPlan(f"disk{n}", f"/m/{n}.qcow2", f"s{n}", bus=bus) for n, bus in enumerate(buses))
    argv = render_argv(replace(PLAN, disks=disks, **change))  # type: ignore[arg-type]
    found = [word for name, word in pairwise(argv) if name == "-device"]
    return [
        one for one in found if not one.startswith(("isa-", "virt", "vmgenid", "pvpanic")) or "scsi" in one
    ]


@pytest.mark.parametrize(
    ("buses", "expected"),
    [
        (
            ("scsi", "scsi"),
            [
                "virtio-scsi-pci,id=scsi,num_queues=2",
                "scsi-hd,bus=scsi.0,scsi-id=0,id=disk0-device,drive=disk0,serial=s0,bootindex=1,write-cache=on",
                "scsi-hd,bus=scsi.0,scsi-id=1,id=disk1-device,drive=disk1,serial=s1,bootindex=2,write-cache=on",
            ],
        ),
        (
            ("sata", "sata"),
            [
                "ich9-ahci,id=sata",
                "ide-hd,bus=sata.0,id=disk0-device,drive=disk0,serial=s0,bootindex=1,write-cache=on",
                "ide-hd,bus=sata.1,id=disk1-device,drive=disk1,serial=s1,bootindex=2,write-cache=on",
            ],
        ),
        (
            ("ide", "ide", "ide"),
            [
                "piix3-ide,id=ide",
                "ide-hd,bus=ide.0,unit=0,id=disk0-device,drive=disk0,serial=s0,bootindex=1,write-cache=on",
                "ide-hd,bus=ide.0,unit=1,id=disk1-device,drive=disk1,serial=s1,bootindex=2,write-cache=on",
                "ide-hd,bus=ide.1,unit=0,id=disk2-device,drive=disk2,serial=s2,bootindex=3,write-cache=on",
            ],
        ),
        (
            ("nvme", "sata"),
            [
                "ich9-ahci,id=sata",
                "nvme,id=disk0-nvme,serial=s0",
                "nvme-ns,bus=disk0-nvme,id=disk0-device,drive=disk0,bootindex=1,write-cache=on",
                "ide-hd,bus=sata.0,id=disk1-device,drive=disk1,serial=s1,bootindex=2,write-cache=on",
            ],
        ),
    ],
)
def test_buses_of_disks(buses: tuple[str, ...], expected: list[str]) -> None:
    assert devices_of(*buses, disk_queues=2) == expected


def test_ide_of_a_pc_without_pci_express_is_on_its_board() -> None:
    found = devices_of("ide", machine_type="pc-i440fx-7.2")
    assert found == [
        "ide-hd,bus=ide.0,unit=0,id=disk0-device,drive=disk0,serial=s0,bootindex=1,write-cache=on"
    ]


def test_a_cd_beside_disks_on_ide() -> None:
    media = (MediumPlan("cdrom", "/i/cd.raw", 101, on_ide=True),)
    found = devices_of("ide", "ide", "ide", media=media)
    assert [one.split(",id=")[0] for one in found] == [
        "piix3-ide",
        "ide-hd,bus=ide.0,unit=0",
        "ide-hd,bus=ide.0,unit=1",
        "ide-hd,bus=ide.1,unit=1",
        "ide-cd,bus=ide.1,unit=0",
    ]
    assert find_crowded(["ide"] * 4, has_ide_cd=False) is None
    assert find_crowded(["ide"] * 4, has_ide_cd=True) == "ide"
    assert find_crowded(["sata"] * 7, has_ide_cd=False) == "sata"
    assert devices_of(media=media)[0] == "piix3-ide,id=ide", "also for a machine without a disk"


def test_a_read_only_disk_on_ide_is_a_cd() -> None:
    seed = DiskPlan("seed", "/m/seed.iso", "cidata", "raw", read_only=True, bus="sata")
    argv = words(render_argv(replace(PLAN, disks=(seed,))))
    assert "-device ide-cd,bus=sata.0,id=seed-device,drive=seed,serial=cidata,bootindex=1 " in argv


@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata", "ide", "nvme"])
def test_a_device_is_found_by_the_name_that_qemu_reports(bus: str) -> None:
    path = device_path("disk3", bus)
    reported = path if bus == "virtio" else "disk3-device"
    assert (disk_of(reported), path_of(reported)) == ("disk3", path)


@pytest.mark.parametrize(
    "qdev", ["", None, 7, "cdrom", "/machine/x/disk0-device", "disk0-device/../x", "x" * 999]
)
def test_other_devices_are_no_disks(qdev: object) -> None:
    assert disk_of(qdev) is None


def test_the_agent_on_the_second_serial_port() -> None:
    argv = words(render_argv(replace(PLAN, agent_on_serial=True)))
    assert "-device isa-serial,id=agent,chardev=agent" in argv
    assert "virtserialport" not in argv
    assert "virtio-serial" not in argv
    assert argv.index("isa-serial,chardev=console") < argv.index("isa-serial,id=agent"), (
        "ttyS0 is the console"
    )


def test_interfaces_of_hyper_v_exist_under_kvm_only() -> None:
    assert "hv-" not in words(render_argv(replace(PLAN, hyperv=True)))
    argv = words(render_argv(replace(PLAN, hyperv=True, accelerator="kvm", cpu_model="EPYC,svm=off")))
    assert "-cpu EPYC,svm=off,hv-relaxed,hv-vapic,hv-spinlocks=0x1fff,hv-vpindex," in argv


def test_a_tpm() -> None:
    assert "tpm" not in words(render_argv(PLAN))
    argv = words(
        render_argv(replace(PLAN, tpm_state="/m/disks/tpm.state"), {**DISPLAYED_DESCRIPTORS, "tpm": 30})
    )
    assert argv.endswith(
        "-chardev socket,id=tpm,fd=30 -tpmdev emulator,id=tpm,chardev=tpm -device tpm-crb,tpmdev=tpm"
    )
    board = replace(PLAN, tpm_state="/s", arch="aarch64", machine_type="virt-7.2")
    assert "-device tpm-tis-device,tpmdev=tpm" in words(render_argv(board))


def test_secure_boot() -> None:
    plain = Firmware("uefi", "/code.fd", "/m/disks/firmware.fd")
    assert "smm" not in words(render_argv(replace(PLAN, firmware=plain)))
    argv = words(render_argv(replace(PLAN, firmware=replace(plain, secure=True))))
    assert "smm=on,pflash0=firmware-code" in argv
    assert "-global driver=cfi.pflash01,property=secure,value=on" in argv


def test_layers_stand_on_each_other() -> None:
    layers = (Layer("/s/2.qcow2", "qcow2"), Layer("/i/disk.raw", "raw"))
    disk = DiskPlan("disk0", "/m/0.qcow2", "root", backing=layers)
    argv = words(render_argv(replace(PLAN, disks=(disk,))))
    assert "driver=raw,node-name=disk0-base1,file=disk0-base1-file,read-only=on" in argv
    assert (
        "node-name=disk0-base0,file=disk0-base0-file,read-only=on,auto-read-only=off,backing=disk0-base1"
        in argv
    )
    assert "discard=unmap,backing=disk0-base0" in argv
    assert argv.index("node-name=disk0-base1,") < argv.index("node-name=disk0-base0,")


def test_more_disks_boot_later() -> None:
    disks = (*PLAN.disks, DiskPlan("disk1", "/m/disks/1.qcow2", "data"))
    argv = words(render_argv(replace(PLAN, disks=disks)))
    assert "drive=disk0,serial=root,bootindex=1" in argv
    assert "drive=disk1,serial=data,bootindex=2" in argv


@pytest.mark.parametrize("hostile", ["a,share=on", "a,,b", ",", "x=y", "ü\N{SNOWMAN}"])
def test_a_value_cannot_become_an_option(hostile: str) -> None:
    argv = render_argv(replace(PLAN, name=hostile))
    value = argv[argv.index("-name") + 1]
    assert value == f"guest={hostile.replace(',', ',,')},debug-threads=on"


def test_option() -> None:
    assert option("x", a_b=1, left_out=None, c="p,q") == "x,a-b=1,c=p,,q"
    assert option("", a=1) == "a=1"


def change_arch(arch: str, **changes: object) -> str:
    """Return the words that differ from a PC's."""
    plan = replace(PLAN, arch=arch, qemu=f"/usr/bin/qemu-system-{arch}", **changes)  # type: ignore[arg-type]
    pc = set(render_argv(PLAN))
    return words([word for word in render_argv(plan) if word not in pc])


def test_golden_aarch64() -> None:
    flash = Firmware("uefi", "/f/code.fd", "/m/vars.fd")
    assert change_arch("aarch64", machine_type="virt-7.2", cpu_model="neoverse-n1", firmware=flash) == (
        "/usr/bin/qemu-system-aarch64 virt-7.2,gic-version=3,memory-backend=ram,dump-guest-core=off,"
        "mem-merge=off,suppress-vmdesc=on,pflash0=firmware-code,pflash1=firmware-variables neoverse-n1 "
        "driver=file,node-name=firmware-code-file,filename=/f/code.fd,read-only=on,auto-read-only=off,"
        "aio=threads driver=raw,node-name=firmware-code,file=firmware-code-file,read-only=on,"
        "auto-read-only=off driver=file,node-name=firmware-variables-file,filename=/m/vars.fd,read-only=off,"
        "auto-read-only=off,aio=threads driver=raw,node-name=firmware-variables,"
        "file=firmware-variables-file,read-only=off,auto-read-only=off -serial chardev:console pvpanic-pci"
    )


def test_golden_riscv64() -> None:
    uboot = Firmware("uefi", "/f/uboot.elf")
    assert change_arch("riscv64", machine_type="virt", cpu_model="rv64", firmware=uboot) == (
        "/usr/bin/qemu-system-riscv64 virt,memory-backend=ram,dump-guest-core=off,mem-merge=off,"
        "suppress-vmdesc=on rv64 -kernel /f/uboot.elf -serial chardev:console pvpanic-pci"
    )
    argv = render_argv(replace(PLAN, arch="riscv64", firmware=uboot, direct_boot=DirectBoot("/k")))
    assert argv.count("-kernel") == 1
    assert "/k" in argv
    assert "-smbios" not in argv


def test_golden_i386() -> None:
    assert change_arch("i386", machine_type="pc-i440fx-7.2", cpu_model="athlon") == (
        "/usr/bin/qemu-system-i386 pc-i440fx-7.2,vmport=off,smbus=off,sata=off,usb=off,hpet=off,graphics=off,"
        "memory-backend=ram,dump-guest-core=off,mem-merge=off,suppress-vmdesc=on athlon"
    )


def test_the_words_of_an_image_init_are_oem_strings() -> None:
    argv = render_argv(replace(PLAN, image_init=("/sbin/init", "a,b")))
    assert argv.count("-smbios") == 2
    assert "type=11,value=bough.init=/sbin/init,value=bough.init=a,,b" in argv
    arm = replace(PLAN, arch="riscv64", machine_type="virt", image_init=("/sbin/init",))
    assert "-smbios" not in render_argv(arm)

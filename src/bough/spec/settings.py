"""The table of a machine's settings.

Every setting of `MachineSpec` has one entry. The table answers all questions about a setting:

    text, example   descriptions in the API, docs/spec.md and examples/machine.toml
    flag            the option of the command line
    change          may the setting of an existing machine change? (`bough set`; `bough up` after a change of
                    the file)
    command         the command that changes the setting instead of `bough set`
    bundle          may a bundle bring it to another host?
    boot            does a booted image depend on it?
    process_image   may a machine that sets it be captured as a process image?

A setting without an entry fails a test. At run time a missing entry counts as forbidden (`entry_of`). Pure,
and quick to import: the command line builds its options from the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

#: never: fixed at creation. stopped, running: may change while the machine is off, or at any time.
Change = Literal["never", "stopped", "running"]
#: kept: travels. dropped: the importing user decides; left at its default. here: kept, but listens only on
#: the loopback of the new host. refused: names a file of the exporting host.
Bundle = Literal["kept", "dropped", "here", "refused"]
#: hardware: part of the key of a booted snapshot. setup: told to the guest after its boot. host: concerns
#: the process on the host alone. always: a machine that sets it always boots.
Boot = Literal["hardware", "setup", "name", "host", "always"]


@dataclass(frozen=True)
class Flag:
    """An option of `create` and `run`.

    Attributes:
        name: "--memory"; "--display/--no-display" for a pair.
        help: one sentence.
        metavar: placeholder of the value; None: click's own.
        short: "-m".
        many: may be repeated; the values form a list or a table.
        kind: "text", "number", "switch" (present or not) or "pair" (on, off, or not given).
        value: what a switch sets.
    """

    name: str
    help: str
    metavar: str | None = None
    short: str | None = None
    many: bool = False
    kind: Literal["text", "number", "switch", "pair"] = "text"
    value: bool | str = True


@dataclass(frozen=True)
class Setting:
    """The meaning of one setting for each part of bough; see the module's docstring.

    Attributes:
        text: a sentence for users, without a full stop.
        example: TOML of the value; for a table or a list of tables, the lines.
    """

    text: str
    example: str
    flags: tuple[Flag, ...] = ()
    change: Change = "never"
    command: str = ""
    bundle: Bundle = "kept"
    boot: Boot = "hardware"
    process_image: bool = False


#: The entry of a setting outside of the table: forbidden everywhere.
FORBIDDEN = Setting("unknown", "", change="never", bundle="refused", boot="always", process_image=False)

SETTINGS: Mapping[str, Setting] = {
    "image": Setting(
        "label, digest, or unique prefix of a digest; `bough image list` shows them",
        '"debian:12"',
        boot="host",  # the key holds the image's digest
        process_image=True,
    ),
    "arch": Setting(
        "processor architecture: x86_64, aarch64, riscv64 or i386; default: the host's",
        '"x86_64"',
        (Flag("--arch", "Processor architecture; default: the host's."),),
        process_image=True,
    ),
    "vcpus": Setting(
        "number of virtual processors",
        "2",
        (Flag("--vcpus", "Number of virtual processors.", kind="number"),),
        change="stopped",
        process_image=True,
    ),
    "memory": Setting(
        "memory; a size is bytes, or a number with KiB, MiB, GiB or TiB",
        '"1GiB"',
        (Flag("--memory", "Memory, like 512MiB.", "SIZE", short="-m"),),
        change="stopped",
        process_image=True,
    ),
    "disk": Setting(
        "size of the first disk, whose file system grows at first boot; default: the image's size",
        '"20GiB"',
        (Flag("--disk", "Size of the first disk; the guest's file system grows.", "SIZE"),),
        change="running",
        process_image=True,
    ),
    "cpu": Setting(
        "'auto', or a CPU model of QEMU like \"Skylake-Client-v3\"",
        '"auto"',
        (Flag("--cpu", "A CPU model of QEMU."),),
        process_image=True,
    ),
    "machine_type": Setting(
        "'auto', or a versioned machine type of QEMU like \"pc-q35-7.2\"",
        '"auto"',
        (Flag("--machine-type", "A versioned machine type of QEMU, like pc-q35-7.2."),),
        process_image=True,
    ),
    "firmware": Setting(
        "firmware that boots the disk: 'auto', 'bios' or 'uefi'",
        '"auto"',
        (Flag("--firmware", "Firmware that boots the disk.", "bios|uefi"),),
        process_image=True,
    ),
    "accelerator": Setting(
        "'auto' uses KVM if a probe guest has run on it, and emulation ('tcg') otherwise",
        '"auto"',
        (Flag("--accelerator", "KVM, or emulation of the processor.", "auto|kvm|tcg"),),
        change="stopped",
        boot="host",  # the key holds the chosen accelerator
        process_image=True,
    ),
    "restart": Setting(
        "'on-failure' starts the machine again when QEMU has ended unexpectedly, or the container program "
        "has failed; default: 'no'",
        '"on-failure"',
        (Flag("--restart", "Start the machine again after a failure.", "no|on-failure"),),
        change="running",
        boot="host",
        process_image=True,
    ),
    "autostart": Setting(
        "start the machine when the service starts",
        "true",
        (Flag("--autostart", "Start the machine when the service starts.", kind="switch"),),
        change="running",
        bundle="dropped",
        boot="host",
        process_image=True,
    ),
    "disk_bus": Setting(
        "bus of the disks: 'virtio', 'scsi' (virtio-scsi), 'sata', 'ide' (at most 4 drives) or 'nvme' (no "
        "snapshots with memory); 'auto': as the image needs, usually 'virtio'",
        '"auto"',
        (Flag("--disk-bus", "Bus of the disks; default: as the image needs.", "virtio|scsi|sata|ide|nvme"),),
        change="stopped",
    ),
    "agent_port": Setting(
        "port of the agent: 'virtio', or 'serial', the second serial port of a PC, for guests without it; "
        "'auto': as the image needs",
        '"auto"',
        (Flag("--agent-port", "Port of the agent; default: as the image needs.", "virtio|serial"),),
        change="stopped",
    ),
    "hyperv": Setting(
        "interfaces of Hyper-V that Windows uses; no effect without KVM",
        "true",
        (Flag("--hyperv", "Offer Windows the interfaces of Hyper-V, under KVM.", kind="switch"),),
        change="stopped",
    ),
    "secure_boot": Setting(
        "the firmware, a UEFI, starts only loaders signed by Microsoft or Debian; for machines of x86_64",
        "true",
        (Flag("--secure-boot", "A UEFI that starts only signed loaders.", kind="switch"),),
    ),
    "tpm": Setting(
        "a TPM 2.0; forks and copies of the machine have the same TPM",
        "true",
        (Flag("--tpm", "A TPM 2.0, by swtpm.", kind="switch"),),
        boot="always",  # two runs must not have the same TPM
    ),
    "cdrom": Setting(
        "an image that is an ISO, in the CD drive",
        '"debian-installer"',
        (Flag("--cdrom", "An ISO in the CD drive; a file is imported.", "IMAGE|FILE"),),
        boot="always",
    ),
    "floppy": Setting(
        "an image that is a floppy, in the floppy drive",
        '"dos"',
        (Flag("--floppy", "A floppy in its drive; a file is imported.", "IMAGE|FILE"),),
        boot="always",
    ),
    "boot": Setting(
        "first boot device: 'disk', 'cdrom' or 'floppy'; 'auto' tries them in this order",
        '"auto"',
        (Flag("--boot", "First boot device.", "disk|cdrom|floppy"),),
        process_image=True,
    ),
    "display": Setting(
        "a screen and a keyboard (bough screenshot, type, screen); default: if the image lacks the agent",
        "true",
        (
            Flag(
                "--display/--no-display",
                "A screen, or none; default: a screen if the image lacks the agent.",
                kind="pair",
            ),
        ),
        boot="always",
    ),
    "kernel": Setting(
        "a kernel of the host instead of the kernel on the disk; a relative path starts at this file",
        '"/boot/vmlinuz"',
        (Flag("--kernel", "A kernel of this host instead of the disk's.", "FILE"),),
        bundle="refused",
        boot="always",
    ),
    "initrd": Setting(
        "an initrd of the host, with `kernel`",
        '"/boot/initrd.img"',
        (Flag("--initrd", "An initrd, with --kernel.", "FILE"),),
        bundle="refused",
        boot="always",
    ),
    "cmdline": Setting(
        "the kernel's command line, with `kernel`",
        '"root=/dev/vda1 console=ttyS0"',
        (Flag("--cmdline", "The kernel's command line, with --kernel.", "TEXT"),),
        boot="always",
    ),
    "uplink": Setting(
        "outbound network, for a machine without `nics`; false: no network card; "
        "'isolated': a card that leads nowhere",
        "true",
        (
            Flag("--no-uplink", "No outbound network.", kind="switch", value=False),
            Flag("--isolated", "A network card that leads nowhere.", kind="switch", value="isolated"),
        ),
        change="stopped",
        process_image=True,
    ),
    "nics": Setting(
        "network cards in order, each on 'uplink', 'isolated' or a network's name; default: as `uplink` says",
        'network = "uplink"\nmac = "52:54:00:12:34:56"\nmodel = "virtio"',
        (
            Flag(
                "--nic",
                "A network card on the uplink or a network, as NETWORK[,mac=MAC][,ipv4=IP][,model=MODEL].",
                "NETWORK",
                many=True,
            ),
        ),
        change="stopped",
        process_image=True,
    ),
    "ports": Setting(
        'TCP ports of the guest on ports of the host: "8080:80", "127.0.0.1:2222:22", "80" for a free one',
        '["8080:80"]',
        (
            Flag(
                "--port",
                "Forward a port of this host to one of the machine.",
                "HOST:GUEST",
                short="-p",
                many=True,
            ),
        ),
        change="running",
        command="bough port",
        bundle="here",
        boot="host",
        process_image=True,
    ),
    "mounts": Setting(
        "directories of the host in the guest, read-only without ':rw'; a relative path starts at this file",
        '["/home/me/src:/srv/src:rw"]',
        (
            Flag(
                "--mount",
                "Share a directory of this host; read-only without :rw.",
                "DIR:PATH[:rw]",
                many=True,
            ),
        ),
        change="running",
        command="bough mount",
        bundle="dropped",
        boot="host",
    ),
    "clock": Setting(
        '\'utc\', \'local\', or an offset from the time now: "+2h", "-30m", "-7d"',
        '"utc"',
        (Flag("--clock", "The guest's clock: an offset like -7d or +2h.", "utc|local|OFFSET"),),
        process_image=True,
    ),
    "hostname": Setting(
        "host name, with or without a domain; default: the machine's name",
        '"mail.example.com"',
        (Flag("--hostname", "Host name, with or without a domain; default: the machine's name."),),
        boot="name",
        process_image=True,
    ),
    "ssh_keys": Setting(
        "public keys that may log in as root; the command line adds your ~/.ssh/*.pub",
        '["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me@laptop"]',
        (Flag("--ssh-key", "A public key that may log in as root by ssh.", "FILE|KEY", many=True),),
        boot="setup",
        process_image=True,
    ),
    "user_data": Setting(
        "cloud-init's user-data, for images that run cloud-init",
        '"#cloud-config\\npackages: [nginx]\\n"',
        (Flag("--user-data", "cloud-init's user-data, for an image that runs it.", "FILE"),),
        boot="always",
    ),
    "commands": Setting(
        "commands that root's shell runs once at first boot, in order, after all other settings",
        '["systemctl enable --now my-service"]',
        (Flag("--command", "A command to run at first boot, in order.", "SHELL", many=True),),
        boot="setup",
        process_image=True,
    ),
    "entrypoint": Setting(
        "ENTRYPOINT of the program instead of the container image's, whose CMD is then left out: a list of "
        "words, or a text that is split as a shell does; []: none",
        '["/usr/bin/redis-server"]',
        (Flag("--entrypoint", "Program instead of the container image's ENTRYPOINT and CMD.", "PROGRAM"),),
        change="stopped",
        boot="host",  # for the program, which starts after the boot
        process_image=True,
    ),
    "command": Setting(
        "CMD of the program instead of the container image's: a list of words, or a text that is split as a "
        "shell does; on the command line, the words after IMAGE",
        '["--appendonly", "yes"]',
        change="stopped",
        boot="host",
        process_image=True,
    ),
    "user": Setting(
        "user of the program and of commands instead of the container image's: NAME, ID, NAME:GROUP or ID:ID",
        '"www-data"',
        (
            Flag(
                "--as-user",
                "User of the program or command: NAME, ID, NAME:GROUP or ID:ID.",
                "USER",
                short="-u",
            ),
        ),
        change="stopped",
        boot="host",
        process_image=True,
    ),
    "workdir": Setting(
        "directory in which the program and commands start, instead of WORKDIR; made if missing",
        '"/srv"',
        (Flag("--workdir", "Directory in which the program or command starts.", "DIR", short="-w"),),
        change="stopped",
        boot="host",
        process_image=True,
    ),
    "init": Setting(
        "process 1 of a machine from a container image: 'image', the program of the image; 'bough', bough's "
        "init, which starts the program; 'auto': the program if it is an init like systemd",
        '"auto"',
        (Flag("--init", "Process 1: the container image's program, or bough's init.", "auto|image|bough"),),
        change="stopped",
        process_image=True,
    ),
    "publish_exposed": Setting(
        "forward a free port of the host to each TCP port that the container image exposes",
        "true",
        (
            Flag(
                "--publish-all",
                "Forward free ports of this host to all ports that the container image exposes.",
                kind="switch",
                short="-P",
            ),
        ),
        change="stopped",
        boot="host",
        process_image=True,
    ),
    "require_jail": Setting(
        "refuse to start if the host lacks a part of the jail (docs/security.md)",
        "true",
        (Flag("--require-jail", "Refuse to start if the host lacks a part of the jail.", kind="switch"),),
        change="stopped",
        boot="host",
        process_image=True,
    ),
    "limits": Setting(
        "bounds on the host's resources; memory: of the QEMU process; cpu: percent of one processor",
        'memory = "4GiB"\ncpu = "150%"\ndisk = "50MiB/s"\niops = 1000\nconsole = "1MiB/s"',
        (
            Flag(
                "--limit",
                "memory=3GiB, cpu=150%, disk=20MiB/s, iops=500, console=1MiB/s.",
                "WHAT=VALUE",
                many=True,
            ),
        ),
        change="stopped",
        boot="host",
        process_image=True,
    ),
    "disks": Setting(
        "extra disks, empty at first",
        'size = "10GiB"\nserial = "data"\nbus = "virtio"',
        (
            Flag(
                "--extra-disk",
                "An empty extra disk, as SIZE[,bus=BUS][,serial=SERIAL].",
                "SIZE",
                many=True,
            ),
        ),
        change="running",
        process_image=True,
    ),
    "users": Setting(
        "users, created at first boot",
        'name = "admin"\nssh_keys = []\nsudo = true\nshell = "/bin/bash"\ngroups = ["adm"]',
        (Flag("--user", "A user to create at first boot; may use sudo.", "NAME", many=True),),
        boot="setup",
        process_image=True,
    ),
    "files": Setting(
        "files, written at first boot: `content`, `content_base64`, or `source`, a file beside this one",
        'path = "/etc/motd"\ncontent = "hello\\n"\nmode = "0644"\nowner = "root:root"',
        (Flag("--copy", "A file to write at first boot.", "FILE:PATH", many=True),),
        boot="setup",
        process_image=True,
    ),
    "environment": Setting(
        "environment of every command and login",
        'LANG = "C.UTF-8"',
        (
            Flag(
                "--env",
                "A variable for every command and login; without =VALUE: this shell's, if set.",
                "NAME[=VALUE]",
                short="-e",
                many=True,
            ),
        ),
        boot="setup",
        process_image=True,
    ),
}


def entry_of(name: str) -> Setting:
    """Return the entry of a setting; FORBIDDEN for a setting without an entry."""
    return SETTINGS.get(name, FORBIDDEN)


def is_settable(name: str) -> bool:
    """Return whether `bough set` changes the setting of an existing machine."""
    entry = entry_of(name)
    return entry.change != "never" and not entry.command


def flags() -> Iterator[tuple[str, Flag]]:
    """Yield every option with its setting, in the table's order."""
    for name, setting in SETTINGS.items():
        for flag in setting.flags:
            yield name, flag


def barring_process_image(used: Iterable[str]) -> list[str]:
    """Return the settings in `used` that forbid a process image."""
    return sorted(name for name in used if not entry_of(name).process_image)

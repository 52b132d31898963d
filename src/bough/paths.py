"""All names of files and directories in a BOUGH_HOME.

$BOUGH_HOME/                             default: $XDG_DATA_HOME/bough, for root /var/lib/bough
  lock                                   held by the service, holds its pid
  ending                                 exists while that service ends
  start.lock                             held by a client while it starts the service
  run/                                   sockets, for this user alone
    api.sock                             the socket of the service
    <machine id>/{qmp,agent,console,vnc}.sock
    networks/<id>/                       of the network's switch
      control.sock, process, switch.log
      <machine id>-<nic>/{nic,switch}.sock   of a machine's port; QEMU may write there
  service.log
  token                                  for the API over TCP, mode 0600; made by `bough serve --listen`
  incoming/                              half-made files; removed when the service starts
  downloads/<key>.{part,json}            downloads to resume; at most a week old
  downloads/container-<digest>/          layers of a container image to resume; at most a week old
  images/<digest>/{image.json,disk.raw}
  agent-disks/<arch>-<digest>.squashfs   disks with the agent, for guests that start the agent from a disk
  boot-kits/<arch>-<digest>.img          kernel and boot loader of the disks made from container images
  agent-disks/keys.json                  key of a recipe -> digest
  labels.json                            label -> digest
  ssh/{key,key.pub}                      bough's own key, which logs in to each machine; mode 0700
  ssh/config-<user>                      the configuration that `bough ssh` passes to ssh
  known_hosts                            of earlier versions of bough; unused
  settings.toml                          written by a user: see forks/process_image/switch.py, images/apt.py
  self-tests.json                        results of self-tests of process images, per build of QEMU
  faults.json                            the present faults of links and machines
  standby.json                           the standby machines that users requested
  catalogue.json                         a fetched catalogue, if newer than the one in bough
  snapshots/<id>/
    snapshot.json                        the manifest; written last
    disks/<n>.qcow2                      the machine's writes before the snapshot; read-only
    overlays/<n>.qcow2                   an empty overlay over each disk; forks copy it
    memory, extents, devices             if the machine ran
  machines/<id>/
    machine.json                         the record: spec, state, identity, process
    disks/<n>.qcow2, disks/<n>-<id>.qcow2  the second form after a snapshot: its new overlay
    log/{console.log,qemu.log,exit}
    suspended/{memory,extents,devices}   while the machine is suspended
  networks/<id>.json                     the record of a network
  projects/<id>.json                     the record of a project
  projects/<id>.restore                  during its restore: the id of the snapshot
  project-snapshots/<id>.json            the record of a project's snapshot; written after all parts
  host.json                              results of probes of this host, per boot
  lost+found/<time>/                     files that `bough doctor --store --repair` moved away

The sockets are not in $XDG_RUNTIME_DIR: a logout, or a program that cleans /run and /tmp, removes that
directory while machines run. `bough.home.SocketAddress` reaches a socket whose path is longer than an address
can be.

The classes are plain: a dataclass or a named tuple would need 0.6 ms of each command's start.
"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from bough.errors import HostLacks
from bough.home import API_SOCKET, RUNTIME, find_home
from bough.serving import ending_mark


class _Place:
    """Base of all classes here: values, not identities."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))


class MachinePaths(_Place):
    def __init__(self, root: Path, runtime: Path) -> None:
        self.root = root
        self.runtime = runtime

    @property
    def record(self) -> Path:
        return self.root / "machine.json"

    @property
    def disks(self) -> Path:
        return self.root / "disks"

    def disk(self, index: int) -> Path:
        return self.disks / f"{index}.qcow2"

    @property
    def suspended(self) -> SnapshotPaths:
        return SnapshotPaths(self.root / "suspended")

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def console_log(self) -> Path:
        return self.log / "console.log"

    @property
    def qemu_log(self) -> Path:
        """Return the file of QEMU's standard error."""
        return self.log / "qemu.log"

    @property
    def exit_status(self) -> Path:
        """Return the file of QEMU's exit status in the form of a shell; the waiter writes the file."""
        return self.log / "exit"

    @property
    def qmp_socket(self) -> Path:
        return self.runtime / "qmp.sock"

    @property
    def agent_socket(self) -> Path:
        return self.runtime / "agent.sock"

    @property
    def vnc_socket(self) -> Path:
        """Return bough's own VNC socket (not QEMU's), for a machine with a screen."""
        return self.runtime / "vnc.sock"

    @property
    def console_socket(self) -> Path:
        return self.runtime / "console.sock"


class ImagePaths(_Place):
    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def manifest(self) -> Path:
        return self.root / "image.json"

    @property
    def disk(self) -> Path:
        return self.root / "disk.raw"


class SnapshotPaths(_Place):
    """The files of a snapshot.

    A snapshot lies as deep below BOUGH_HOME as a machine, so relative names of backing files fit both.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def manifest(self) -> Path:
        return self.root / "snapshot.json"

    @property
    def disks(self) -> Path:
        return self.root / "disks"

    def disk(self, index: int) -> Path:
        return self.disks / f"{index}.qcow2"

    @property
    def overlays(self) -> Path:
        return self.root / "overlays"

    def overlay(self, index: int) -> Path:
        return self.overlays / f"{index}.qcow2"

    @property
    def memory(self) -> Path:
        return self.root / "memory"

    @property
    def extents(self) -> Path:
        return self.root / "extents"

    @property
    def devices(self) -> Path:
        return self.root / "devices"


class NetworkPaths(_Place):
    """The files of a network's switch."""

    def __init__(self, record: Path, runtime: Path) -> None:
        self.record = record
        self.runtime = runtime

    @property
    def control_socket(self) -> Path:
        return self.runtime / "control.sock"

    @property
    def process(self) -> Path:
        """Return the file that identifies the switch's process."""
        return self.runtime / "process"

    @property
    def log(self) -> Path:
        """Return the file of the switch's standard error."""
        return self.runtime / "switch.log"

    def port(self, name: str) -> Path:
        return self.runtime / name


class Home(_Place):
    """The files of a BOUGH_HOME."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def from_environment(cls) -> Home:
        return cls.at(find_home())

    @classmethod
    def at(cls, root: str | os.PathLike[str]) -> Home:
        # realpath, not Path.resolve: a home that does not exist yet is fine.
        return cls(Path(os.path.realpath(Path(root).expanduser())))

    @property
    def runtime(self) -> Path:
        return self.root / RUNTIME

    @property
    def hidden(self) -> tuple[Path, ...]:
        """Return the directories that no guest may see through any shared directory."""
        return (self.root, self.runtime)

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def service_log(self) -> Path:
        return self.root / "service.log"

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def standby(self) -> Path:
        return self.root / "standby.json"

    @property
    def spares(self) -> Path:
        """Return the name of `standby` in homes of earlier versions."""
        return self.root / "spares.json"

    @property
    def ssh(self) -> Path:
        return self.root / "ssh"

    @property
    def ssh_key(self) -> Path:
        return self.ssh / "key"

    @property
    def ssh_public_key(self) -> Path:
        return self.ssh / "key.pub"

    def ssh_config(self, user: str) -> Path:
        return self.ssh / f"config-{user}"

    @property
    def known_hosts(self) -> Path:
        return self.root / "known_hosts"

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def downloads(self) -> Path:
        return self.root / "downloads"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def agent_disks(self) -> Path:
        return self.root / "agent-disks"

    @property
    def agent_disk_keys(self) -> Path:
        return self.agent_disks / "keys.json"

    def agent_disk(self, arch: str, digest: str) -> Path:
        return self.agent_disks / f"{arch}-{digest}.squashfs"

    @property
    def boot_kits(self) -> Path:
        return self.root / "boot-kits"

    @property
    def boot_kit_keys(self) -> Path:
        return self.boot_kits / "keys.json"

    def boot_kit(self, arch: str, digest: str) -> Path:
        return self.boot_kits / f"{arch}-{digest}.img"

    @property
    def labels(self) -> Path:
        return self.root / "labels.json"

    @property
    def catalogue(self) -> Path:
        return self.root / "catalogue.json"

    @property
    def machines(self) -> Path:
        return self.root / "machines"

    @property
    def networks(self) -> Path:
        return self.root / "networks"

    @property
    def projects(self) -> Path:
        return self.root / "projects"

    @property
    def faults(self) -> Path:
        return self.root / "faults.json"

    @property
    def project_snapshots(self) -> Path:
        return self.root / "project-snapshots"

    @property
    def host_facts(self) -> Path:
        return self.root / "host.json"

    @property
    def settings(self) -> Path:
        return self.root / "settings.toml"

    @property
    def self_tests(self) -> Path:
        return self.root / "self-tests.json"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def lost_and_found(self) -> Path:
        return self.root / "lost+found"

    @property
    def names(self) -> frozenset[str]:
        """Return all names that may be in `root`; `bough doctor --store` reports other names as strays."""
        logs = [self.service_log, self.service_log.with_suffix(".log.1")]
        nouns = [
            self.images,
            self.agent_disks,
            self.labels,
            self.machines,
            self.networks,
            self.projects,
            self.snapshots,
        ]
        rest = [
            self.boot_kits,
            self.project_snapshots,
            self.lock,
            ending_mark(self.lock),
            self.start_lock,
            self.runtime,
            self.token,
            self.incoming,
            self.downloads,
            self.host_facts,
            self.lost_and_found,
            self.settings,
            self.self_tests,
            self.standby,
            self.faults,
            self.spares,
            self.catalogue,
            self.known_hosts,
            self.ssh,
        ]
        return frozenset(path.name for path in logs + nouns + rest)

    @property
    def api_socket(self) -> Path:
        return self.runtime / API_SOCKET

    @property
    def start_lock(self) -> Path:
        """Return the lock that a client holds while it starts the service."""
        return self.root / "start.lock"

    @property
    def runtime_names(self) -> frozenset[str]:
        """Return all names that may be in `runtime`, beside a directory per machine."""
        return frozenset({self.api_socket.name, self.networks.name})

    def machine(self, machine_id: str) -> MachinePaths:
        return MachinePaths(self.machines / machine_id, self.runtime / machine_id)

    def image(self, digest: str) -> ImagePaths:
        return ImagePaths(self.images / digest)

    def network(self, network_id: str) -> NetworkPaths:
        runtime = self.runtime / self.networks.name / network_id
        return NetworkPaths(self.networks / f"{network_id}.json", runtime)

    def project(self, project_id: str) -> Path:
        """Return the file of a project's record."""
        return self.projects / f"{project_id}.json"

    def project_restore(self, project_id: str) -> Path:
        """Return the file that says where a restore of a project leads, while the restore is under way."""
        return self.projects / f"{project_id}.restore"

    def project_snapshot(self, snapshot_id: str) -> Path:
        """Return the file of the record of a project's snapshot."""
        return self.project_snapshots / f"{snapshot_id}.json"

    def snapshot(self, snapshot_id: str) -> SnapshotPaths:
        return SnapshotPaths(self.snapshots / snapshot_id)

    def create(self) -> None:
        """Create the directories. Other users, like a jailed QEMU's, may pass through but not list.

        Raises:
            HostLacks: see `make_private_directory`. OSError: a directory cannot be made.
        """
        nouns = (self.images, self.machines, self.networks, self.projects, self.snapshots)
        for path in (self.root, self.incoming, self.agent_disks, self.project_snapshots, *nouns):
            make_directory(path, 0o711)
        if not self.runtime.is_symlink():  # a link of an earlier version: see service/sockets.py
            make_private_directory(self.runtime)


def make_directory(path: Path, mode: int) -> None:
    """Create `path` with exactly this mode, for any umask. An existing directory keeps its mode."""
    try:
        path.mkdir(mode=mode, parents=True)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(mode)


def make_private_directory(path: Path) -> None:
    """Create `path` with mode 0700, or refuse a directory of another user.

    Raises:
        HostLacks: the path is a link, belongs to another user, or is writable for others.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise HostLacks(
            f"{path} is not a directory that only this user can write to",
            hint=f"if no machine runs, remove it: rm -rf {shlex.quote(str(path))}",
        )

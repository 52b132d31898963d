"""Check the files of the home, as far as directory listings and small files show their state.

The check starts and changes nothing. Each kind of file has a function that yields findings; AUDITS names all
functions. All functions run in one step of the service's event loop, so no file is made or deleted meanwhile.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bough.audit.agent_disks import audit_disk, audit_machine_disk, audit_snapshot_disk
from bough.audit.finding import Finding, Repair, Skipped
from bough.images.agent_disk.store import DISK_NAME
from bough.images.store import ImageManifest
from bough.machines.plan import FIRMWARE_VARIABLES
from bough.machines.record import MachineRecord
from bough.networks.record import NetworkRecord
from bough.paths import Home, MachinePaths
from bough.projects.record import ProjectRecord
from bough.projects.snapshot import read_project_snapshot
from bough.qemu.jail import Jail
from bough.qemu.tpm import TPM_STATE
from bough.qemu.waiter_files import is_held
from bough.snapshots.store import SnapshotManifest
from bough.storage import is_unfinished_write

_CONSOLE_LOGS = {"console.log", "console.log.1"}
_PROCESS_LOGS = {"qemu.log", "qemu.log.old", "exit", "exit.new", "process", "process.new", "lock"}
_MACHINE_LOGS = frozenset(_CONSOLE_LOGS | _PROCESS_LOGS)
#: A younger empty control group may be about to get its first process.
_GROUP_AGE_S = 60.0
_ASIDE = "bough does not use it: move it away (--repair moves it to lost+found)"


@dataclass
class Look:
    """The input of a check: the home, and facts that only the service knows.

    Attributes:
        live: ids of machines that have a process.
        making: an operation creates or deletes files, and owns the content of incoming/.
        group_bases: directories of control groups, each with a subdirectory per machine.
        jail: the jail for programs that check disks.
    """

    home: Home
    live: Collection[str] = ()
    making: bool = False
    group_bases: tuple[str, ...] = ()
    jail: Jail = field(default_factory=Jail)
    records: dict[str, MachineRecord] = field(default_factory=dict)
    images: dict[str, ImageManifest] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def audit_files(look: Look) -> list[Finding]:
    return [finding for audit in AUDITS for finding in audit(look)]


# -- images -----------------------------------------------------------------------------------


def _audit_images(look: Look) -> Iterator[Finding]:
    home = look.home
    for root in _entries(home.images):
        paths = home.image(root.name)
        if root.name.startswith(".") and root.name.endswith(".lock"):
            continue
        if is_unfinished_write(root.name):
            yield _unfinished(root)
            continue
        if not root.is_dir() or root.is_symlink():
            yield _stray(root)
            continue
        yield from _strays(root, {paths.manifest.name, paths.disk.name})
        yield from _check_mode(root, 0o711)
        try:
            manifest = ImageManifest.model_validate_json(paths.manifest.read_bytes())
            if manifest.digest != root.name:
                raise ValueError(f"it names another digest: {manifest.digest[:80]!r}")
        except (OSError, ValueError) as error:
            yield Finding(
                "image-unreadable",
                paths.manifest,
                f"the manifest of an image cannot be read: {_first_line(error)}",
                "its machines cannot start: build it again, or move it away (--repair does) if it has none",
                None if _is_used(home, root.name) else Repair.SET_ASIDE,
            )
            continue
        look.images[manifest.digest] = manifest
        yield from _audit_image_disk(paths.disk, manifest, look)


def _audit_image_disk(disk: Path, manifest: ImageManifest, look: Look) -> Iterator[Finding]:
    size = disk.stat().st_size if disk.is_file() else None
    if size != manifest.size_bytes:
        problem = "has no disk" if size is None else f"has {size} bytes instead of {manifest.size_bytes}"
        used = _is_used(look.home, manifest.digest)
        yield Finding(
            "image-damaged",
            disk.parent,
            f"image {manifest.label} {problem}",
            "restore its disk from a backup: machines use it" if used else "build it again",
            None if used else Repair.SET_ASIDE,
        )
        return
    yield from _check_mode(disk, 0o555)


def _audit_labels(look: Look) -> Iterator[Finding]:
    path = look.home.labels
    try:
        labels = dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError) as error:
        text = "rebuild it from the images' manifests (--repair does, and keeps the old file)"
        yield Finding(
            "labels-unreadable",
            path,
            f"the labels cannot be read: {_first_line(error)}",
            text,
            Repair.LABELS,
        )
        return
    yield from _check_mode(path, 0o600)
    for label, digest in labels.items():
        if digest not in look.images:
            text = "remove the label (--repair does); `bough image build` makes the image again"
            problem = f"the label {label[:80]!r} names a missing image"
            yield Finding("label-dangling", path, problem, text, Repair.LABELS)


def _is_used(home: Home, digest: str) -> bool:
    """Return whether a record, even a damaged one, names the image."""
    needle = digest.encode()
    for root in _entries(home.machines):
        try:
            if needle in home.machine(root.name).record.read_bytes():
                return True
        except OSError:
            continue
    return False


# -- machines ---------------------------------------------------------------------------------


def _audit_machines(look: Look) -> Iterator[Finding]:
    names: dict[str, str] = {}
    for root in _entries(look.home.machines):
        if not root.is_dir() or root.is_symlink():
            yield _stray(root)
            continue
        paths = look.home.machine(root.name)
        try:
            record = MachineRecord.read(paths)
        except (OSError, ValueError) as error:
            yield _unreadable(paths, error)
            continue
        look.records[record.id] = record
        if record.name in names:
            yield Finding(
                "name-twice",
                paths.record,
                f"two machines are called '{record.name}': {names[record.name]} and {record.id}",
                f"rename one by its id: bough rename {record.id} ANOTHER",
                machine=record.id,
            )
        names[record.name] = record.id
        yield from _audit_machine(record, paths, look)


def _unreadable(paths: MachinePaths, error: Exception) -> Finding:
    alive = paths.log.is_dir() and is_held(paths)
    text = "its disks are intact: repair machine.json by hand, or move the directory away (--repair does)"
    if alive:
        text = "its QEMU runs: let the guest power off first"
    return Finding(
        "record-unreadable",
        paths.root,
        f"the record of machine {paths.root.name} cannot be read: {_first_line(error)}",
        f"{text}; the disks in {paths.disks} can be used by another machine",
        None if alive else Repair.SET_ASIDE,
        machine=paths.root.name,
    )


def _audit_machine(record: MachineRecord, paths: MachinePaths, look: Look) -> Iterator[Finding]:
    for digest in (record.image_digest, *record.media.digests):
        if digest not in look.images and _stands_on(record, digest):
            yield Finding(
                "image-missing",
                paths.record,
                f"machine '{record.name}' needs image {digest[:12]}, which is missing",
                f"restore {look.home.image(digest).root} from a backup; the machine cannot start without it",
                machine=record.id,
            )
    yield from audit_machine_disk(record, look.home)
    known_names = {paths.record.name, paths.disks.name, paths.log.name}
    if record.suspended is not None:
        known_names.add(paths.suspended.root.name)
        yield from _audit_suspended(record, paths)
    yield from _strays(paths.root, known_names, record.id)
    yield from _strays(paths.log, _MACHINE_LOGS, record.id)
    wanted = disk_files(record)
    known = {*wanted, FIRMWARE_VARIABLES, TPM_STATE, *(disk.file for disk in record.disks_before or ())}
    for path in _entries(paths.disks):
        # The record of a fork does not name the overlays of a pre-warm yet. They are deleted with the fork.
        if path.name not in known and path.suffix != ".iso" and not record.standby:
            yield _stray(path, record.id)
        else:
            yield from _check_mode(path, 0o600)
    for name in wanted:
        if not (paths.disks / name).is_file():
            yield Finding(
                "disk-missing",
                paths.disks / name,
                f"disk {name} of machine '{record.name}' is missing",
                "restore it from a backup; the machine cannot start without it",
                machine=record.id,
            )
    yield from _check_mode(paths.root, 0o711)
    yield from _check_mode(paths.disks, 0o711)
    yield from _check_mode(paths.log, 0o711)
    yield from _check_mode(paths.record, 0o600)


def _stands_on(record: MachineRecord, digest: str) -> bool:
    """Return whether the machine needs the image.

    A machine from a bundle has whole disks. The image may never have been on this host.
    """
    layers = [layer for disk in record.disks for layer in disk.layers]
    own = not layers or any(layer.startswith(f"images/{digest}/") for layer in layers)
    return own or digest in record.media.digests


def _audit_suspended(record: MachineRecord, paths: MachinePaths) -> Iterator[Finding]:
    for path in (paths.suspended.memory, paths.suspended.extents, paths.suspended.devices):
        if not path.is_file():
            yield Finding(
                "suspended-damaged",
                path,
                f"machine '{record.name}' is suspended, and the file {path.name} of its memory is missing",
                f"restore it from a backup, or boot from the disks: bough start {record.name} --cold",
                machine=record.id,
            )


def disk_files(record: MachineRecord) -> list[str]:
    """Return the file names of the machine's disks."""
    if record.disks:
        return [disk.file for disk in record.disks]
    first = 1 if record.media.root == "none" else 0
    return [f"{number}.qcow2" for number in range(first, len(record.spec.disks) + 1)]


# -- snapshots --------------------------------------------------------------------------------


def _audit_snapshots(look: Look) -> Iterator[Finding]:
    """Check that each snapshot has the files of its manifest. `bough snapshot verify` also reads them."""
    home = look.home
    for root in _entries(home.snapshots):
        paths = home.snapshot(root.name)
        try:
            manifest = SnapshotManifest.model_validate_json(paths.manifest.read_bytes())
        except (OSError, ValueError) as error:
            yield Finding(
                "snapshot-unreadable",
                root,
                f"the manifest of snapshot {root.name} cannot be read: {_first_line(error)}",
                "machines that use its disks still start; restore snapshot.json from a backup",
            )
            continue
        names = {paths.manifest.name, paths.disks.name, paths.overlays.name}
        memory = (paths.memory, paths.extents, paths.devices)
        if manifest.memory is not None:
            names |= {path.name for path in memory}
        yield from _strays(root, names)
        yield from audit_snapshot_disk(manifest, home)
        wanted = [home.root / layer for disk in manifest.disks for layer in disk.layers]
        for path in [*wanted, *(memory if manifest.memory is not None else ())]:
            if not path.is_file():
                yield Finding(
                    "snapshot-damaged",
                    path,
                    f"snapshot {manifest.label or manifest.id} of '{manifest.machine_name}' needs {path}, "
                    "which is missing",
                    "restore it from a backup; machines that use it cannot start without it",
                )


# -- agent disks ------------------------------------------------------------------------------


def _audit_agent_disks(look: Look) -> Iterator[Finding]:
    home = look.home
    for path in _entries(home.agent_disks):
        if path.name.startswith(".") and path.name.endswith(".lock"):
            continue
        if is_unfinished_write(path.name):
            yield _unfinished(path)
        elif path == home.agent_disk_keys:
            yield from _check_mode(path, 0o600)
        elif DISK_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            yield from _check_mode(path, 0o555)
            yield from audit_disk(path)
        else:
            yield _stray(path)


# -- networks, projects -------------------------------------------------------------------------


def _audit_networks(look: Look) -> Iterator[Finding]:
    def read(path: Path) -> None:
        NetworkRecord.read(look.home.network(path.stem))

    yield from _audit_records(look.home.networks, "network", read, "its machines cannot start")


def _audit_projects(look: Look) -> Iterator[Finding]:
    yield from _audit_records(look.home.projects, "project", ProjectRecord.read, "its machines run on")


def _audit_project_snapshots(look: Look) -> Iterator[Finding]:
    effect = "the snapshot cannot be forked"
    read = read_project_snapshot
    yield from _audit_records(look.home.project_snapshots, "project-snapshot", read, effect)


def _audit_records(
    directory: Path, noun: str, read: Callable[[Path], object], effect: str
) -> Iterator[Finding]:
    """Check a directory with a record for each network or project."""
    for path in _entries(directory):
        if is_unfinished_write(path.name):
            yield _unfinished(path)
        elif path.suffix == ".restore" and path.with_suffix(".json").is_file():
            continue  # a restore is under way
        elif path.suffix != ".json" or not path.is_file():
            yield _stray(path)
        else:
            yield from _check_mode(path, 0o600)
            try:
                read(path)
            except (OSError, ValueError) as error:
                yield Finding(
                    f"{noun}-unreadable",
                    path,
                    f"the record of {noun} {path.stem} cannot be read: {_first_line(error)}",
                    f"{effect}: repair it by hand, or move it away (--repair does)",
                    Repair.SET_ASIDE,
                )


# -- other files --------------------------------------------------------------------------------


def _audit_root(look: Look) -> Iterator[Finding]:
    yield from _strays(look.home.root, look.home.names)
    for path in (look.home.incoming, look.home.images, look.home.machines):
        yield from _check_mode(path, 0o711)
    yield from _check_mode(look.home.root, 0o755)


def _audit_incoming(look: Look) -> Iterator[Finding]:
    if look.making:
        look.skipped.append(Skipped("incoming/", "an operation that creates or deletes files is under way"))
        return
    for path in _entries(look.home.incoming):
        text = "move it away (--repair does); the service removes it at its next start"
        yield Finding("half-made", path, f"{path.name} is half-made", text, Repair.SET_ASIDE)


def _audit_runtime(look: Look) -> Iterator[Finding]:
    home = look.home
    yield from _check_mode(home.runtime, 0o700)
    for path in _entries(home.runtime):
        if path.name in home.runtime_names:
            continue
        if path.is_dir():  # or a link to a directory: for machines of an earlier version
            yield from _audit_machine_runtime(path, look)
        else:
            yield _stray(path, remove=_is_socket(path))


def _audit_machine_runtime(root: Path, look: Look) -> Iterator[Finding]:
    if root.name in look.live or (look.making and root.name not in look.records):
        return
    for path in _entries(root):
        if root.name not in look.records:
            yield _stray(path, remove=_is_socket(path))
    if root.name not in look.records:
        yield _stray(root, remove=True)


def _audit_groups(look: Look) -> Iterator[Finding]:
    for base in look.group_bases:
        for group in _entries(Path(base)):
            if not group.is_dir() or group.name in look.live or _has_processes(group):
                continue
            if time.time() - group.stat().st_mtime < _GROUP_AGE_S:
                continue
            problem = f"the control group {group} has no process"
            text = "remove it (--repair does)"
            yield Finding("stale-group", group, problem, text, Repair.REMOVE, harmless=True)


def _has_processes(group: Path) -> bool:
    try:
        return bool((group / "cgroup.procs").read_text().strip())
    except OSError:
        return True  # unknown: leave the group alone


AUDITS = (
    _audit_images,
    _audit_labels,
    _audit_machines,
    _audit_snapshots,
    _audit_agent_disks,
    _audit_networks,
    _audit_projects,
    _audit_project_snapshots,
    _audit_root,
    _audit_incoming,
    _audit_runtime,
    _audit_groups,
)


# -- helpers ------------------------------------------------------------------------------------


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _strays(directory: Path, known: Collection[str], machine: str | None = None) -> Iterator[Finding]:
    for path in _entries(directory):
        if path.name not in known:
            yield _unfinished(path) if is_unfinished_write(path.name) else _stray(path, machine)


def _stray(path: Path, machine: str | None = None, *, remove: bool = False) -> Finding:
    repair = Repair.REMOVE if remove else Repair.SET_ASIDE
    text = "remove it (--repair does)" if remove else _ASIDE
    return Finding("stray", path, f"{path} is not part of bough's data", text, repair, machine)


def _unfinished(path: Path) -> Finding:
    problem = f"{path} is left from an interrupted write"
    text = "remove it (--repair does): the file that it should replace is intact"
    return Finding("half-made", path, problem, text, Repair.REMOVE, harmless=True)


def _is_socket(path: Path) -> bool:
    """Return whether the path is a socket, or a link for a socket without a name."""
    return stat.S_ISSOCK(path.lstat().st_mode) or path.is_symlink()


def _check_mode(path: Path, most: int) -> Iterator[Finding]:
    """Report a mode that allows more than `most`.

    A repair is possible if the service owns the file or runs as root.
    """
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(info.st_mode)
    if not stat.S_ISLNK(info.st_mode) and mode & ~most:
        wanted = mode & most
        yield Finding(
            "mode",
            path,
            f"{path} has mode {mode:04o}, which gives others too much access",
            f"chmod {wanted:04o} {path} (--repair does)",
            Repair.MODE if info.st_uid == os.geteuid() or os.geteuid() == 0 else None,
            mode=wanted,
        )


def _first_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200]

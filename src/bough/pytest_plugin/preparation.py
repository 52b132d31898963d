"""The snapshot that a suite's forks start from: made once, kept, and found again by its key.

The key is a digest of everything that the snapshot is made of: the image's digest, the spec with the content
of its files, and the source of the preparation. The label of the snapshot has the key. Another suite, or
another branch of the suite, has other keys; of one suite the last _KEPT snapshots stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bough.errors import BoughError, InvalidSpec, NotFound
from bough.pytest_plugin.locks import alone
from bough.pytest_plugin.options import Source
from bough.pytest_plugin.source_text import source_of

if TYPE_CHECKING:
    from bough.client.hypervisor import Hypervisor
    from bough.client.machine import Machine, Snapshot
    from bough.pytest_plugin.recording import Recorder

Prepare = Callable[[Any], object]
_KEPT = 3
_LABEL = "pytest-"


class PreparedMachines:
    """Finds and makes the prepared snapshots of machines.

    Args:
        locks: directory of the locks between processes.
        run: id of the run of the suite, the same in all its workers.
        fresh: make each snapshot anew that this run has not made.
    """

    def __init__(self, hv: Hypervisor, recorder: Recorder, locks: Path, *, run: str, fresh: bool) -> None:
        self._hv = hv
        self._run_id = run
        self._recorder = recorder
        self._locks = locks
        self._fresh = fresh
        self._found: dict[str, Snapshot] = {}

    def find(self, source: Source, prepare: Prepare | None) -> Snapshot:
        """Return the snapshot; the first process that needs it makes it, while the others wait.

        Raises:
            BoughError: of the machine, or what `prepare` raises. Nothing half-made is left.
        """
        spec = read_spec(source)
        key = digest_of(self._image_digest(spec), spec, source_of(prepare))
        if key not in self._found:
            with alone(self._locks / f"{digest_of(str(self._hv.home.root), key)}.lock"):
                self._found[key] = self._find(source, spec, prepare, key)
        return self._found[key]

    def forget(self, snapshot: Snapshot) -> None:
        """Look again next time: somebody has deleted the snapshot."""
        self._found = {key: one for key, one in self._found.items() if one.id != snapshot.id}

    def _find(self, source: Source, spec: dict[str, Any], prepare: Prepare | None, key: str) -> Snapshot:
        label = f"{_LABEL}{key}"
        try:
            snapshot = self._hv.snapshot(label)
        except NotFound:
            return self._make(source, spec, prepare, label)
        if not self._fresh or f" run {self._run_id})" in snapshot.info().message:
            return snapshot
        snapshot.delete()
        return self._make(source, spec, prepare, label)

    def _make(self, source: Source, spec: dict[str, Any], prepare: Prepare | None, label: str) -> Snapshot:
        with self._recorder.step("prepare", f"boot and prepare {source.name}"):
            with self._run(spec) as machine:
                self._recorder.name(machine.id, machine.name)
                machine.wait("booted")
                if prepare is not None:
                    prepare(machine)
                suite = suite_of(source, prepare)
                message = f"prepared for tests of {source.name} (suite {suite}, run {self._run_id})"
                snapshot = machine.snapshot(label, message=message)
        _delete_old(self._hv, suite, snapshot)
        return snapshot

    def _run(self, spec: dict[str, Any]) -> Machine:
        settings = dict(spec)
        return self._hv.run(settings.pop("image"), **settings)

    def _image_digest(self, spec: dict[str, Any]) -> str:
        """Return the digest of the spec's image, as a machine gets it. A missing image is built or pulled."""
        given: dict[str, Any] = {name: spec[name] for name in ("image", "arch") if name in spec}
        with self._hv.create_from(given, force=True, ephemeral=True) as probe:
            return probe.info().image_digest


def read_spec(source: Source) -> dict[str, Any]:
    """Return the whole spec of a machine, with the content of its files.

    Published ports get any free port of the host: the user may run such a machine beside the tests.

    Raises:
        InvalidSpec, NotFound
    """
    from bough.client.spec_files import resolve_sources
    from bough.spec import load_toml, merge

    if not source.is_file:
        spec = {"image": source.name, **source.settings}
        return _with_free_ports(resolve_sources(spec, source.base))
    spec = merge(load_toml(source.file), source.settings)
    if "image" not in spec:
        raise InvalidSpec(
            f"{source.file} has no image",
            hint="bough_machine needs the spec of one machine; for several use bough_project",
        )
    spec.pop("name", None)  # each fork has a name of its own
    return _with_free_ports(resolve_sources(spec, source.file.parent))


def _with_free_ports(spec: dict[str, Any]) -> dict[str, Any]:
    ports = spec.get("ports")
    if not isinstance(ports, list | tuple):
        return spec
    return {**spec, "ports": [_free(port) for port in ports]}


def _free(port: Any) -> Any:
    """Return the port with any port of the host: "0:80" for "8080:80". What is no port stays as it is."""
    if isinstance(port, dict):
        return {**port, "host_port": 0}
    return f"0:{port.rpartition(':')[2]}" if isinstance(port, str) else port


def digest_of(*parts: object) -> str:
    """Return 16 hexadecimal digits that differ when a part differs."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def suite_of(source: Source, prepare: Prepare | None) -> str:
    """Return the name of a suite's snapshots: it stays while file and preparation change."""
    name = f"{prepare.__module__}.{prepare.__qualname__}" if prepare is not None else ""
    return digest_of(str(source.base), source.name, name)


def _delete_old(hv: Hypervisor, suite: str, newest: Snapshot) -> None:
    """Delete the suite's oldest snapshots. Forks of them live on."""
    ours = [one for one in hv.list_snapshots() if f"(suite {suite}," in one.message]
    for old in sorted(ours, key=lambda one: one.created)[:-_KEPT]:
        if old.id != newest.id:
            with contextlib.suppress(BoughError):
                hv.snapshot_at(old.id).delete()

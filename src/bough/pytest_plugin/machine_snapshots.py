"""Prepared snapshots of single machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bough.errors import InvalidSpec
from bough.pytest_plugin.options import Source
from bough.pytest_plugin.preparation import KeptSnapshot, Prepare

if TYPE_CHECKING:
    from bough.client.hypervisor import Hypervisor
    from bough.client.machine import Snapshot
    from bough.pytest_plugin.recording import Recorder


class MachineSnapshots:
    """Makes and finds snapshots of machines; see preparation.Snapshots."""

    def __init__(self, hv: Hypervisor, recorder: Recorder) -> None:
        self._hv = hv
        self._recorder = recorder

    def describe(self, source: Source) -> object:
        spec = read_spec(source)
        return {"spec": spec, "image": image_digest(self._hv, spec)}

    def find(self, reference: str) -> Snapshot:
        return self._hv.snapshot(reference)

    def make(self, source: Source, prepare: Prepare | None, label: str, message: str) -> Snapshot:
        spec = read_spec(source)
        with self._recorder.step("prepare", f"boot and prepare {source.name}"):
            with self._hv.run(spec.pop("image"), **spec) as machine:
                self._recorder.name(machine.id, machine.name)
                machine.wait("booted")
                if prepare is not None:
                    prepare(machine)
                return machine.snapshot(label, message=message)

    def list(self) -> list[KeptSnapshot]:
        return [KeptSnapshot(one.created, one.id, one.message) for one in self._hv.list_snapshots()]


def image_digest(hv: Hypervisor, spec: dict[str, Any]) -> str:
    """Return the digest of the image that a machine of the spec gets. A missing image is built or pulled."""
    given: dict[str, Any] = {name: spec[name] for name in ("image", "arch") if name in spec}
    with hv.create_from(given, force=True, ephemeral=True) as probe:
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

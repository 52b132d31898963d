"""The commands export, import and bundle: machines in files and registries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bough.cli.machine_choice import machine_here, machine_options
from bough.cli.output import progress, show_json
from bough.cli.service import DURATION, TIMEOUT_HELP, connect, json_option
from bough.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from typing import Literal

    from bough.contract.snapshots import Identity


@click.command()
@machine_options
@click.argument("source")
@click.argument("file")
@click.option("--disks-only", is_flag=True, help="Omit the memory of a running machine.")
@click.option(
    "--without-image",
    is_flag=True,
    help="Omit the content of the machine's image; the importing host must have the image.",
)
def export(source: str, file: str, disks_only: bool, without_image: bool) -> None:
    """Write a machine, a project or a snapshot to FILE; `-` is standard output.

    FILE may be a place in a registry, docker://HOST/REPOSITORY:TAG, for a machine or a snapshot. Only chunks
    that the registry lacks are sent.

    FILE.bough is a bundle: `bough import` continues the machine on another host. A running machine is
    exported with its memory, and runs on. FILE.qcow2 and FILE.ova hold the disks for other hypervisors.
    A project becomes one bundle with all its machines.
    """
    from bough.client.bundle import export_file, export_stream, export_to_registry, is_in_registry

    if file == "-" and sys.stdout.isatty():
        raise InvalidInput(
            "cannot write a bundle to a terminal", hint="bough export NAME - | ssh HOST bough import -"
        )
    with progress() as report:
        api, source = connect().api, machine_here(source)
        if file == "-":
            export_stream(
                api,
                source,
                sys.stdout.buffer,
                disks_only=disks_only,
                without_image=without_image,
                progress=report,
            )
            sys.stdout.buffer.flush()
        elif is_in_registry(file):
            pushed = export_to_registry(
                api, source, file, disks_only=disks_only, without_image=without_image, progress=report
            )
            print(f"{pushed.reference}@{pushed.digest}")
        else:
            export_file(
                api, source, file, disks_only=disks_only, without_image=without_image, progress=report
            )


@click.command("import")
@click.argument("file")
@click.option("--name", help="Name of the machine; default: its name when exported.")
@click.option(
    "--identity",
    type=click.Choice(["keep", "new"]),
    default="keep",
    help="keep: the identity of the exported machine; new: a new one.",
)
@click.option("--cold", is_flag=True, help="Import the disks only; the machine is stopped.")
@click.option(
    "--accelerator",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    help="tcg: continue the memory of an emulated machine by emulation, also if this host has KVM.",
)
@click.option("--force", is_flag=True, help="Allow more memory, disk or vCPUs than the host has.")
@click.option("--timeout", type=DURATION, help=TIMEOUT_HELP)
@json_option
def import_bundle(
    file: str,
    name: str | None,
    identity: Identity,
    cold: bool,
    accelerator: Literal["auto", "kvm", "tcg"],
    force: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Create a machine or a project from FILE, a bundle; `-` is standard input. A machine exported with
    memory continues where it was.

    FILE may be a machine in a registry: docker://HOST/REPOSITORY:TAG, or @sha256:DIGITS.
    """
    from bough.client.bundle import import_from_registry, import_stream, is_in_registry

    options: dict[str, Any] = {"name": name, "identity": identity, "cold": cold, "force": force}
    options |= {"accelerator": accelerator, "timeout": timeout}
    with progress() as report:
        if is_in_registry(file):
            made = import_from_registry(connect().api, file, progress=report, **options)
        else:
            stream = sys.stdin.buffer if file == "-" else _open(file)
            made = import_stream(connect().api, stream, progress=report, **options)
    show_json(made) if as_json else print(made["name"])


def _open(file: str):  # type: ignore[no-untyped-def]  # IO[bytes]
    path = Path(file).expanduser()
    if not path.is_file():
        raise NotFound(f"no file {file}", kind="file")
    return path.open("rb")


@click.group()
def bundle() -> None:
    """Inspect bundles."""


@bundle.command("info")
@click.argument("file")
def bundle_info(file: str) -> None:
    """Print the manifest of a bundle as JSON. The disks and the memory are not read."""
    from bough.bundle import read_manifest
    from bough.project_bundle import MAGIC, Peeked, read_magic, read_project_manifest

    stream = sys.stdin.buffer if file == "-" else _open(file)
    magic = read_magic(stream)
    if magic == MAGIC:
        show_json(read_project_manifest(stream))
    else:
        show_json(read_manifest(Peeked(magic, stream))[0])

"""image list, build, delete, prune."""

from __future__ import annotations

from typing import Any

import click

from bough.cli.output import ago, progress, show_json, show_table
from bough.cli.service import IMAGE, connect, json_option
from bough.units import format_size


@click.group()
def image() -> None:
    """Build, list and delete images."""


@image.command("list")
@json_option
def list_images(as_json: bool) -> None:
    """List the images that are here."""
    images = connect().get("/images")
    if as_json:
        show_json(images)
        return
    rows = [
        [
            ", ".join(i["labels"]) or "-",
            i["digest"][:12],
            i["arch"],
            format_size(i["size_bytes"]),
            format_size(i["disk_bytes"]),
            f"{ago(i['created'])} ago",
            ", ".join(i["used_by"]) or "-",
        ]
        for i in images
    ]
    show_table(rows, ["LABELS", "DIGEST", "ARCH", "SIZE", "ON DISK", "MADE", "USED BY"])


@image.command()
@click.argument("label", metavar="LABEL|RECIPE.toml")
@click.option("--arch", help="Processor architecture; the host's by default.")
@click.option("--rebuild", is_flag=True, help="Build it again, from today's packages.")
@click.option("--mirror", metavar="URL", help="A Debian mirror instead of the default one.")
@json_option
def build(label: str, arch: str | None, rebuild: bool, mirror: str | None, as_json: bool) -> None:
    """Build an image from packages: debian:11, debian:12, debian:13, debian:testing, debian:sid.

    Or from a recipe: a file like ./web.toml, which names a base and what is added to it.
    """
    body: dict[str, Any] = {"ref": label, "arch": arch, "rebuild": rebuild, "mirror": mirror}
    path = "/images/build"
    if label.endswith(".toml"):
        path, body = "/images/recipe", _recipe(label, rebuild, mirror)
    service = connect()
    with progress() as report:
        built = service.long_call("POST", path, body, progress=report)
    show_json(built) if as_json else print(built["digest"][:12])


def _recipe(file: str, rebuild: bool, mirror: str | None) -> dict[str, Any]:
    from pathlib import Path

    from bough.client.sources import resolve_sources
    from bough.spec import load_toml

    path = Path(file).expanduser()
    recipe = load_toml(path)
    sources = resolve_sources({"files": recipe.get("files", [])}, path.absolute().parent)
    recipe = {**recipe, **(sources if "files" in recipe else {})}
    return {"recipe": recipe, "label": path.stem, "rebuild": rebuild, "mirror": mirror}


@image.command("import")
@click.argument("source", metavar="FILE|URL")
@click.option("--name", metavar="LABEL", help="What to call it; made of the file's name by default.")
@click.option("--format", metavar="FORMAT", default="auto", help="raw, qcow2, vmdk, vdi, vhdx, ova, iso.")
@click.option("--arch", help="Processor architecture, where the disk does not tell; the host's by default.")
@click.option("--firmware", metavar="bios|uefi", default="auto", help="What it boots by.")
@click.option("--sha256", metavar="DIGITS", help="Of the file; sha512:DIGITS is taken as well.")
@click.option("--os", default="unknown", help="Which system it is, for lists.")
@click.option("--disk", metavar="FILE", help="Which one, of an OVA with several.")
@click.option("--max-size", metavar="SIZE", help="How large it may be as a disk; 2TiB by default.")
@click.option("--cloud-init", is_flag=True, help="It runs cloud-init, which then gets it our agent.")
@json_option
def import_image(source: str, max_size: str | None, as_json: bool, **given: Any) -> None:
    """Take over a disk image: raw, qcow2, vmdk, vdi, vhdx, OVA or ISO, also in gz, xz, zst or bz2.

    A download that breaks off goes on where it was, when the same command comes again. The file's
    sha256 is kept with the image, also where none was asked for.
    """
    from pathlib import Path

    from bough.errors import InvalidInput
    from bough.units import parse_size

    if "://" not in source:  # the service works in another directory
        source = str(Path(source).expanduser().absolute())
    try:
        limit = parse_size(max_size) if max_size else None
    except ValueError as error:
        raise InvalidInput(f"--max-size: {error}") from None
    service = connect()
    with progress() as report:
        body = {"source": source, "max_size": limit, **given}
        made = service.long_call("POST", "/images/import", body, progress=report)
    show_json(made) if as_json else print(f"{made['label']}  {made['digest'][:12]}")


@image.command()
@click.argument("references", type=IMAGE, nargs=-1, required=True)
def delete(references: tuple[str, ...]) -> None:
    """Delete images that no machine stands on."""
    from bough.client.connection import path_of

    service = connect()
    for reference in references:
        service.call("DELETE", path_of("images", reference), timeout=120)


@image.command()
@json_option
def prune(as_json: bool) -> None:
    """Delete every image that no machine stands on and no label names."""
    done = connect().post("/images/prune", timeout=300)
    if as_json:
        show_json(done)
        return
    for digest in done["deleted"]:
        print(digest[:12])
    click.echo(f"{format_size(done['freed_bytes'])} freed", err=True)

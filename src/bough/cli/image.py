"""image list, build, delete, prune."""

from __future__ import annotations

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
@click.argument("label")
@click.option("--arch", help="Processor architecture; the host's by default.")
@click.option("--rebuild", is_flag=True, help="Build it again, from today's packages.")
@click.option("--mirror", metavar="URL", help="A Debian mirror instead of the default one.")
@json_option
def build(label: str, arch: str | None, rebuild: bool, mirror: str | None, as_json: bool) -> None:
    """Build an image from packages: debian:11, debian:12, debian:13, debian:testing, debian:sid."""
    body = {"ref": label, "arch": arch, "rebuild": rebuild, "mirror": mirror}
    service = connect()
    with progress() as report:
        built = service.long_call("POST", "/images/build", body, progress=report)
    show_json(built) if as_json else print(built["digest"][:12])


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

"""The commands image list, info, build, lock, import, search, pull, push, catalogue, delete and prune."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from bough.cli.image_capture import capture, refresh
from bough.cli.output import ago, clean, progress, show_json, show_table
from bough.cli.service import IMAGE, connect, json_option
from bough.units import format_size


@click.group()
def image() -> None:
    """Build, pull, list and delete images."""


image.add_command(capture)
image.add_command(refresh)


@image.command("list")
@json_option
def list_images(as_json: bool) -> None:
    """List the images in BOUGH_HOME."""
    images = connect().images()
    if as_json:
        show_json([i.raw for i in images])
        return
    rows = [
        [
            ", ".join(i.labels) or "-",
            i.digest[:12],
            i.arch,
            format_size(i.size_bytes),
            format_size(i.disk_bytes),
            f"{ago(i.created)} ago",
            ", ".join(i.used_by) or "-",
        ]
        for i in images
    ]
    show_table(rows, ["LABELS", "DIGEST", "ARCH", "SIZE", "ON DISK", "MADE", "USED BY"])


@image.command()
@click.argument("reference", type=IMAGE, metavar="IMAGE")
@click.option("--arch", help="Processor architecture, if the image exists for several.")
@json_option
def info(reference: str, arch: str | None, as_json: bool) -> None:
    """Show an image: its disk, its origin, and what a container image says about its program."""
    found = connect().image(reference, arch=arch)
    if as_json:
        show_json(found.raw)
        return
    facts = [*_disk_facts(found.raw), *_container_facts(found.raw.get("container") or {})]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(clean(f"{name + ':':<{width + 1}} {value}").replace("\n", "\\n"))


def _disk_facts(image: dict[str, Any]) -> list[tuple[str, str]]:
    origin = image.get("origin") or {}
    found = [
        ("labels", ", ".join(image["labels"]) or "-"),
        ("digest", image["digest"]),
        ("system", f"{image['os']} {image['version']}".strip()),
        ("architecture", image["arch"]),
        ("firmware", ", ".join(image["firmware"])),
        ("size", f"{format_size(image['size_bytes'])}, {format_size(image['disk_bytes'])} on disk"),
        ("agent", image["agent"] or "none"),
        ("made", f"{ago(image['created'])} ago"),
        ("origin", origin.get("source") or origin.get("base") or ""),
        ("used by", ", ".join(image["used_by"]) or "-"),
    ]
    return [(name, value) for name, value in found if value]


def _container_facts(container: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a container image says, in the words of a Dockerfile."""
    import shlex

    if not container:
        return []
    check = container["healthcheck"] or {}
    found = [
        ("container", f"{container['reference']}, {container['digest']}"),
        ("entrypoint", shlex.join(container["entrypoint"])),
        ("cmd", shlex.join(container["cmd"])),
        *(("env", f"{name}={value}") for name, value in container["env"].items()),
        ("user", container["user"] or "root"),
        ("workdir", container["workdir"] or "/"),
        ("stop signal", container["stop_signal"]),
        ("expose", ", ".join(container["ports"])),
        ("volume", ", ".join(container["volumes"])),
        ("healthcheck", shlex.join(check.get("test", ())[1:])),
        *(("label", f"{name}={value}") for name, value in container["labels"].items()),
    ]
    return [(name, value) for name, value in found if value]


@image.command()
@click.argument("what", metavar="[LABEL|RECIPE.toml|DIRECTORY]", required=False)
@click.option(
    "-f", "--file", metavar="DOCKERFILE", help="Build a Dockerfile with buildah; '-': from standard input."
)
@click.option(
    "-t", "--name", "label", metavar="LABEL", help="Label of a Dockerfile's image; default: DIRECTORY's name."
)
@click.option(
    "--build-arg", "build_args", metavar="NAME=VALUE", multiple=True, help="Value of an ARG of a Dockerfile."
)
@click.option("--target", metavar="STAGE", help="Last stage of a Dockerfile to build.")
@click.option("--arch", help="Processor architecture; default: the recipe's, or else the host's.")
@click.option("--rebuild", is_flag=True, help="Build the image again, from today's packages.")
@click.option("--mirror", metavar="URL", help="Mirror of Debian's packages.")
@click.option(
    "--security-mirror",
    metavar="URL|none",
    help="Mirror of Debian's security updates; 'none': no security updates.",
)
@click.option(
    "--lock",
    metavar="FILE",
    type=click.Path(),
    help="Use the package versions that `bough image lock` wrote.",
)
@json_option
def build(
    what: str | None, file: str | None, arch: str | None, rebuild: bool, as_json: bool, **options: Any
) -> None:
    """Build an image from packages: debian:11, debian:12, debian:13, debian:testing, debian:sid.

    A recipe, a file like ./web.toml, names a base image and additions. A directory, or -f, builds a
    Dockerfile with the files of the directory.
    """
    of_file = {name: options.pop(name) for name in ("label", "build_args", "target")}
    is_dockerfile = file is not None or (what is not None and _is_directory(what))
    _check_build(what, is_dockerfile, of_file, options)
    how: dict[str, Any] = {"arch": arch, "rebuild": rebuild}
    if options["lock"] is not None:
        options["lock"] = _load_lock(options["lock"])
    recipe = _recipe(what) if what and what.endswith(".toml") and not is_dockerfile else None
    of_file["build_args"] = _build_args(of_file["build_args"])
    hypervisor = connect()
    with progress() as report:
        if is_dockerfile:
            built = hypervisor.build_dockerfile(what or ".", file=file, **of_file, **how, progress=report)
        elif recipe is not None:
            built = hypervisor.build_recipe(**recipe, **how, **options, progress=report)
        else:
            built = hypervisor.build_image(str(what), **how, **options, progress=report)
    show_json(built.raw) if as_json else print(built.digest[:12])


def _is_directory(what: str) -> bool:
    """Return whether the word means a directory. A label, like "web", never does."""
    from pathlib import Path

    return (what in (".", "..") or "/" in what) and Path(what).expanduser().is_dir()


def _check_build(
    what: str | None, is_dockerfile: bool, of_file: dict[str, Any], of_packages: dict[str, Any]
) -> None:
    """Check that the options fit what is built."""
    if not is_dockerfile and what is None:
        raise click.UsageError("name what to build: a LABEL, a RECIPE.toml, or a Dockerfile by -f")
    wrong = of_packages if is_dockerfile else of_file
    names = {"label": "-t", "build_args": "--build-arg"}
    given = [names.get(name, f"--{name.replace('_', '-')}") for name, value in wrong.items() if value]
    if given:
        other = "packages and recipes" if is_dockerfile else "a Dockerfile: -f DOCKERFILE"
        raise click.UsageError(f"{', '.join(given)}: only for {other}")


def _build_args(words: Iterable[str]) -> dict[str, str]:
    """Return NAME=VALUE as a mapping. NAME alone takes a value of the environment, as with Docker."""
    import os

    pairs = ((name, value if equals else os.environ.get(name)) for name, equals, value in map(_split, words))
    return {name: value for name, value in pairs if value is not None}


def _split(word: str) -> tuple[str, str, str]:
    return word.partition("=")


@image.command()
@click.argument("reference", type=IMAGE, metavar="IMAGE")
@click.argument("file", metavar="[FILE]", type=click.Path(), required=False)
@json_option
def lock(reference: str, file: str | None, as_json: bool) -> None:
    """Write the package versions of an image, for `bough image build --lock FILE`.

    FILE is created or replaced; without FILE the lock is printed. A lock names no mirror: if the archive has
    dropped these versions, name other mirrors by --mirror and --security-mirror.
    """
    from pathlib import Path

    from bough.spec import render_lock
    from bough.storage import write_atomically

    found = connect().lock_image(reference)
    if as_json:
        show_json(found)
    elif file is None:
        print(render_lock(found), end="")
    else:
        write_atomically(Path(file).expanduser(), render_lock(found).encode(), mode=0o644)
        click.echo(f"{len(found['packages'])} packages locked in {file}", err=True)


def _load_lock(file: str) -> dict[str, Any]:
    from pathlib import Path

    from bough.spec import load_toml

    return load_toml(Path(file).expanduser())


def _recipe(file: str) -> dict[str, Any]:
    from pathlib import Path

    from bough.client.spec_files import resolve_recipe
    from bough.spec import load_toml

    path = Path(file).expanduser()
    recipe = load_toml(path)
    return {"recipe": resolve_recipe(recipe, path.absolute().parent), "label": path.stem}


@image.command("import")
@click.argument("source", metavar="FILE|URL")
@click.option("--name", metavar="LABEL", help="Label of the image; default: made from the file's name.")
@click.option(
    "--format",
    metavar="FORMAT",
    default="auto",
    help="raw, qcow2, vmdk, vdi, vhdx, vhd, ova or iso; default: detected.",
)
@click.option("--arch", help="Processor architecture, if the disk does not show it; default: the host's.")
@click.option(
    "--firmware", metavar="bios|uefi", default="auto", help="Firmware that boots the disk; default: detected."
)
@click.option("--sha256", metavar="DIGITS", help="Expected checksum of the file; sha512:DIGITS works, too.")
@click.option("--os", default="unknown", help="Name of the operating system, for listings.")
@click.option(
    "--disk",
    metavar="FILE",
    help="One disk of an OVA; default: all disks, and the first one boots.",
)
@click.option(
    "--disk-bus",
    metavar="virtio|scsi|sata|ide|nvme",
    default="auto",
    help="Bus of the disks of machines from the image; default: what its initrd has drivers for, or virtio.",
)
@click.option(
    "--nic-model",
    metavar="virtio|e1000|e1000e|rtl8139",
    default="auto",
    help="Model of their network cards; default: what its kernel has drivers for, or virtio.",
)
@click.option(
    "--agent-port",
    metavar="virtio|serial",
    default="auto",
    help="Port of their agent; default: virtio, if the kernel has it.",
)
@click.option("--max-size", metavar="SIZE", help="Largest size of the disk; default: 2TiB.")
@click.option(
    "--cloud-init", is_flag=True, help="The image runs cloud-init, which then installs bough's agent."
)
@click.option(
    "--agent/--no-agent",
    default=None,
    help="Whether the disk has bough's agent; --no-agent leaves the disk alone. Default: install it "
    "into a Linux without it.",
)
@click.option(
    "--root",
    metavar="PARTITION",
    help="Partition with the root of the Linux, if a disk has several: a number, or GROUP/VOLUME of LVM.",
)
@json_option
def import_image(source: str, max_size: str | None, as_json: bool, **given: Any) -> None:
    """Import a disk image: raw, qcow2, vmdk, vdi, vhdx, OVA or ISO, also compressed by gz, xz, zst or bz2.

    FILE may also be an OVF (.ovf) or the directory of an OVF.

    The same command resumes a broken download. The file's sha256 is kept with the image, except for a file
    with large holes.
    """
    from bough.errors import InvalidInput
    from bough.units import parse_size

    try:
        limit = parse_size(max_size) if max_size else None
    except ValueError as error:
        raise InvalidInput(f"--max-size: {error}") from None
    hypervisor = connect()
    with progress() as report:
        made = hypervisor.import_image(source, max_size=limit, progress=report, **given)
    show_json(made.raw) if as_json else print(f"{made.raw['label']}  {made.digest[:12]}")


@image.command()
@click.argument("words", nargs=-1)
@click.option("--arch", help="Only images for this processor architecture.")
@json_option
def search(words: tuple[str, ...], arch: str | None, as_json: bool) -> None:
    """List the images that can be built or pulled. WORDS: only images with all words in name or title.

    CHECKED says how bough verifies a download: by the publisher's signature of the checksums, or by checksums
    alone. Checksums alone are as trustworthy as the connection to the server.
    """
    hypervisor = connect()
    found = hypervisor.catalogue(" ".join(words), arch=arch)
    if as_json:
        show_json(found)
        return
    here = {label for each in hypervisor.images() for label in each.labels}
    rows = [
        [
            i["names"][0],
            i["title"],
            ", ".join(file["arch"] for file in i["files"]) or "-",
            _checked(i["files"]),
            "yes" if here & set(i["names"]) else "-",
        ]
        for i in found["images"]
    ]
    show_table(rows, ["NAME", "WHAT", "ARCH", "CHECKED", "HERE"])


def _checked(files: list[dict[str, Any]]) -> str:
    if not files:
        return "signature of each package"
    return "signature" if all(file["signature"] for file in files) else "checksum"


@image.command()
@click.argument("name", metavar="NAME")
@click.option("--arch", help="Processor architecture; default: the host's.")
@click.option(
    "--name",
    "label",
    metavar="LABEL",
    help="Label of the image; default: its name in the catalogue or registry.",
)
@click.option("--no-signature", is_flag=True, help="Check the checksum only, not its signature.")
@json_option
def pull(name: str, arch: str | None, label: str | None, no_signature: bool, as_json: bool) -> None:
    """Download an image of the catalogue, like fedora:44, or a container image, like docker://nginx.

    `bough image search` lists the catalogue. bough verifies the checksum, and the publisher's signature, if
    any.

    A container image is docker://[HOST[:PORT]/]NAME[:TAG], oci:DIRECTORY, oci-archive:FILE or
    docker-archive:FILE. skopeo uses your auth files, mirrors and policy for signatures. docker:// may also
    name an image that `bough image push` wrote.

    `bough run` and `create` pull a missing image. `pull` asks the registry again.
    """
    hypervisor = connect()
    with progress() as report:
        made = hypervisor.pull_image(name, arch=arch, label=label, signed=not no_signature, progress=report)
    show_json(made.raw) if as_json else print(made.digest[:12])


@image.command()
@click.argument("reference", type=IMAGE, metavar="IMAGE")
@click.argument("target", metavar="docker://HOST/REPOSITORY:TAG")
@json_option
def push(reference: str, target: str, as_json: bool) -> None:
    """Write an image to a registry. `bough image pull` with the same name takes the image back.

    The image becomes an OCI artifact of chunks. Only chunks that the repository lacks are sent, so a broken
    push resumes, and a changed image costs only its changes. skopeo uses your auth files: skopeo login HOST.
    The output is the name with the digest. `bough export` writes a machine or a snapshot to a registry.
    """
    hypervisor = connect()
    with progress() as report:
        pushed = hypervisor.push_image(reference, target, progress=report)
    show_json(pushed.raw) if as_json else print(f"{pushed.reference}@{pushed.digest}")


@image.group()
def catalogue() -> None:
    """Manage the list of published images."""


@catalogue.command("update")
@click.option(
    "--from", "source", metavar="URL", help="Address of the catalogue; remembered for the next update."
)
@click.option("--force", is_flag=True, help="Accept a catalogue that is older than the present one.")
@json_option
def update_catalogue(source: str | None, force: bool, as_json: bool) -> None:
    """Fetch a newer catalogue. The new catalogue must be valid as a whole."""
    hypervisor = connect()
    with progress() as report:
        found = hypervisor.update_catalogue(source, force=force, progress=report)
    _show_catalogue(found, as_json)


@catalogue.command("reset")
@json_option
def reset_catalogue(as_json: bool) -> None:
    """Go back to bough's own catalogue."""
    _show_catalogue(connect().reset_catalogue(), as_json)


def _show_catalogue(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(found)
        return
    count = sum(1 for image in found["images"] if image["files"])
    print(f"serial {found['serial']}, {count} images, from {found['source'] or 'bough itself'}")


@image.command()
@click.argument("references", type=IMAGE, nargs=-1, required=True)
def delete(references: tuple[str, ...]) -> None:
    """Delete images that no machine uses."""
    hypervisor = connect()
    for reference in references:
        hypervisor.delete_image(reference)


@image.command()
@json_option
def prune(as_json: bool) -> None:
    """Delete every image that no machine uses and no label points to."""
    done = connect().prune_images()
    if as_json:
        show_json(done)
        return
    for digest in done["deleted"]:
        print(digest[:12])
    click.echo(f"{format_size(done['freed_bytes'])} freed", err=True)

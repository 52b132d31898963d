"""A container image pulled from a registry on this host, against podman."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.container_registry import Images, has_registry, serve_registry

from bench.harness import RESULTS, Bench, run_quietly
from bench.machine import run_bough

ABOUT = "container images pulled from a registry on this host, against podman pull"
_ROUNDS = 3
_LAYERS = 20


def run(bench: Bench) -> None:
    if not has_registry() or shutil.which("podman") is None:
        bench.note("oci: skopeo, docker-registry or podman is not installed")
        return
    debian = debian_tar()
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="bough-bench-") as place:
        with serve_registry(Path(place) / "registry") as registry:
            images = Images()
            images.image([debian.read_bytes()], {"Cmd": ["bash"]}, name="debian")
            images.image(_pieces(debian), {"Cmd": ["bash"]}, name="layers")
            registry.push(images, "bench")
            for tag, what in (
                ("debian", "a Debian in one layer"),
                ("layers", f"a Debian in {_LAYERS} layers"),
            ):
                name = f"{registry.host}/bench:{tag}"
                bench.in_turns(
                    f"pull {what}, {debian.stat().st_size >> 20} MiB",
                    ours=partial(_by_bough, f"docker://{name}"),
                    peer=partial(_by_podman, Path(place), name),
                    what=("bough image pull: layers, tree, disk, digest", "podman pull: layers, tree"),
                    rounds=_ROUNDS,
                    warm_ups=1,
                )


def _by_bough(name: str) -> float:
    """Pull an image that is not here, and return the seconds."""
    began = time.perf_counter()
    run_bough("image", "pull", name)
    taken = time.perf_counter() - began
    run_bough("image", "delete", name)
    return taken


def _by_podman(place: Path, name: str) -> float:
    words = ["podman", "--root", place / "podman", "--runroot", place / "podman-run"]
    began = time.perf_counter()
    run_quietly(*words, "pull", "--quiet", "--tls-verify=false", name)
    run_quietly("sync", "-f", place / "podman")
    taken = time.perf_counter() - began
    run_quietly(*words, "rmi", "--all", "--force")
    return taken


def debian_tar() -> Path:
    """Return a Debian as a tar file, built once and kept until `make clean`."""
    path = RESULTS / "peer" / "debian-minbase.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        run_quietly("mmdebstrap", "--variant=minbase", "--include=python3", "bookworm", f"{path}.new.tar")
        Path(f"{path}.new.tar").rename(path)
    return path


def _pieces(whole: Path) -> list[bytes]:
    """Return the same files as layers of about the same number of files."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        paths = [Path(place) / str(number) for number in range(_LAYERS)]
        layers = [tarfile.open(path, "w", format=tarfile.PAX_FORMAT) for path in paths]  # noqa: SIM115
        with tarfile.open(whole) as archive:
            members = archive.getmembers()
            for number, member in enumerate(members):
                content = archive.extractfile(member) if member.isreg() else None
                layers[number * _LAYERS // len(members)].addfile(member, content)
        for layer in layers:
            layer.close()
        return [path.read_bytes() for path in paths]

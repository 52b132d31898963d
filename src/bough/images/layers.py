"""An image made from another image: the disk of a temporary machine, flattened into the store.

The machine is deleted afterwards. hypervisor/images.py runs the machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bough.errors import BuildFailed
from bough.images.apt import ADD_SOURCES, ASKED, FILTER_PATH, PINS_PATH, render_pins, source_files
from bough.images.confined import Confinement, find_program, run_confined
from bough.images.convert import sync_image
from bough.images.disk import digest_image
from bough.images.moves import TARGET_SERIAL, check_room
from bough.images.overlays import render_chain
from bough.images.recipes import SCRIPTS, Recipe, recipe_for
from bough.images.store import ImageManifest, ImageStore, split_label
from bough.progress import Progress, Report
from bough.spec import PackageLock, RecipeSpec
from bough.spec.container import Container
from bough.storage import no_space_is_told
from bough.tasks import finish

#: Removes the machine's identity from the guest, and the agent's marks of the first boot. So each machine of
#: the image gets an identity and a first boot of its own.
CLEAN_SCRIPT = r"""
set -u
rm -rf /var/lib/bough /etc/ssh/ssh_host_* /var/lib/systemd/random-seed
rm -rf /var/lib/dhcp/* /var/lib/apt/lists/*
[ ! -d /var/lib/cloud ] || find /var/lib/cloud -mindepth 1 -maxdepth 1 ! -name seed -exec rm -rf {} +
[ ! -x /usr/bin/apt-get ] || apt-get -q clean >/dev/null 2>&1
find /var/log -type f -exec truncate -s 0 {} +
rm -rf /var/log/journal/* /tmp/* /var/tmp/*
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id
sync
fstrim / >/dev/null 2>&1
dpkg-query -W -f '${Package} ${Version}\n' 2>/dev/null
exit 0
"""


def layer_key(base_digest: str, recipe: dict[str, object]) -> str:
    """Return the key of a base and all changes. The same key means the same image."""
    text = json.dumps([base_digest, recipe, CLEAN_SCRIPT], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def packages_recipe(recipe: RecipeSpec, label: str, arch: str) -> Recipe:
    """Return the part of `recipe` that is built from packages, for a base debian:*."""
    packages = recipe_for(split_label(recipe.base)[0], arch)
    own = tuple(name for name in recipe.packages if name not in packages.packages)
    # The base's packages are installed first. A package of the base with "=version" must be among them.
    early = tuple(
        name for name in own if not recipe.recommends or name.partition("=")[0] in packages.packages
    )
    return replace(
        packages,
        label=label,
        packages=tuple(dict.fromkeys((*packages.packages, *early))),
        recommending=tuple(dict.fromkeys(name for name in own if name not in early)),
        kernel=recipe.kernel or packages.kernel,
        agent=recipe.agent,
        cloud_init=recipe.cloud_init,
        sources=recipe.sources,
        file_systems=tuple(sorted(recipe.file_systems - {"ext4"})),
    )


#: Packages come from the guest's own apt. An image of another distribution is refused with words.
NEEDS_APT = (
    "command -v apt-get >/dev/null || { echo 'packages and sources of a recipe need apt-get, which this "
    "image lacks: install by commands' >&2; exit 1; }"
)


def layer_container(recipe: RecipeSpec, base: ImageManifest) -> Container | None:
    """Return what the new image says about its program: as its base, with the recipe's environment."""
    if base.container is None or not recipe.environment:
        return base.container
    return base.container.model_copy(update={"env": {**base.container.env, **recipe.environment}})


def layer_spec(recipe: RecipeSpec, base: ImageManifest, lock: PackageLock | None) -> dict[str, Any]:
    """Return the spec of the temporary machine."""
    size = recipe.size or base.size_bytes
    if recipe.needs_move:
        check_room(size, recipe.partitions)
    spec: dict[str, Any] = {
        **recipe.model_dump(mode="json", include={"users", "files", "environment", "commands"}),
        **{"image": base.digest, "disk": recipe.size, "hostname": recipe.hostname or base.os},
        "disks": [{"size": size, "serial": TARGET_SERIAL, "bus": "virtio"}] if recipe.needs_move else [],
    }
    files = {} if recipe.is_debian else source_files(recipe.sources, ASKED)
    if recipe.sources and not recipe.is_debian:
        files[FILTER_PATH] = (SCRIPTS / "new_sources.awk").read_text()
    if lock is not None:
        files[PINS_PATH] = render_pins(lock.packages)
    spec["files"] = [*({"path": path, "content": text} for path, text in files.items()), *spec["files"]]
    commands = []
    if not recipe.is_debian and (recipe.packages or recipe.sources):
        how = "--install-recommends" if recipe.recommends else "--no-install-recommends"
        install = f"apt-get -q install -y {how} {' '.join(recipe.packages)}"
        added = [ADD_SOURCES] if recipe.sources else []
        commands = [NEEDS_APT, *added, "apt-get -q update", f"DEBIAN_FRONTEND=noninteractive {install}"]
    after = [f"rm {PINS_PATH}"] if lock is not None else []
    spec["commands"] = [*commands, *spec["commands"], *after]
    return spec


async def flatten(
    store: ImageStore,
    base: ImageManifest,
    chain: Sequence[Path],
    size_bytes: int,
    *,
    container: Container | None,
    key: str,
    label: str,
    packages: dict[str, str],
    confinement: Confinement,
    report: Report,
) -> ImageManifest:
    """Flatten `chain` to an image. The machine's own overlay is the first file. The machine's QEMU has ended.

    Args:
        container: what the image says about its program, if the base is of a container image.

    Raises:
        BuildFailed, NoSpace
    """
    report(Progress("writing the image"))
    made = store.home.incoming / f"layer-{secrets.token_hex(6)}"
    made.mkdir(mode=0o711)
    try:
        with no_space_is_told(f"the image {label}", store.home.root):
            disk = made / "disk.raw"
            with disk.open("xb") as stream:
                os.ftruncate(stream.fileno(), size_bytes)
            for path in (disk, chain[0]):
                confinement.give(path)
            done = await run_confined(
                confinement,
                [
                    *(find_program("qemu-img"), "convert", "-n", "--target-is-zero"),
                    *("-O", "raw", render_chain(chain), str(disk)),
                ],
                read_only=chain,
                writable=(disk,),
            )
            if done.status != 0:
                raise BuildFailed(f"the image {label} could not be written", output=done.output, image=label)
            confinement.take_back(disk)
            await asyncio.to_thread(sync_image, disk, size_bytes)
            lasting = {
                **{
                    name: getattr(base, name) for name in ("os", "version", "arch", "root_partition", "agent")
                },
                "firmware": list(base.firmware),
                "size_bytes": size_bytes,
                "cloud_init": base.cloud_init,
                "disks": list(base.disks),
                **{name: getattr(base, name) for name in ("disk_bus", "nic_model", "agent_port")},
                **({"container": container.model_dump(mode="json")} if container else {}),
            }
            digest = await asyncio.to_thread(digest_image, disk, lasting)
            manifest = ImageManifest.model_validate(
                {
                    **lasting,
                    "digest": digest,
                    "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "label": label,
                    "recipe": key,
                    "packages": packages or base.packages,
                    "origin": {"base": base.digest},
                }
            )
            store.add(made, manifest, label)
        return store.resolve(manifest.digest)
    finally:
        await finish(asyncio.to_thread(shutil.rmtree, made, True))


def parse_packages(output: str) -> dict[str, str]:
    """Parse dpkg-query's output from a hostile guest: bound the text, skip malformed lines."""
    pairs = (line.split() for line in output[: 1024 * 1024].splitlines())
    return {pair[0][:100]: pair[1][:100] for pair in pairs if len(pair) == 2}

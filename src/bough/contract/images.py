"""Requests about images and the catalogue of published images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from bough.contract.request import Request, Route

if TYPE_CHECKING:
    from bough.contract.answers import ImageInfo, Pushed
    from bough.contract.checks import Pattern


class ListImages(Request):
    """List all images."""

    route = Route("GET", "/images")
    answer: ClassVar[list[ImageInfo]]


class BuildImage(Request):
    """Build `ref` from packages, unless the image exists; `rebuild` builds in any case.

    `lock` is an answer of GET /images/{reference}/lock.
    """

    route = Route("POST", "/images/build", "long")
    answer: ClassVar[ImageInfo]
    ref: str
    arch: str | None = None
    rebuild: bool = False
    mirror: str | None = None
    security_mirror: str | None = None
    lock: dict[str, Any] | None = None


class BuildRecipe(Request):
    """Build the image of a recipe; `label` is for a recipe without a label.

    `lock` is an answer of GET /images/{reference}/lock.
    """

    route = Route("POST", "/images/recipe", "long")
    answer: ClassVar[ImageInfo]
    recipe: dict[str, Any]
    label: str
    arch: str | None = None
    rebuild: bool = False
    mirror: str | None = None
    security_mirror: str | None = None
    lock: dict[str, Any] | None = None


class ImportImage(Request):
    """Import the disk image at `source`: an absolute path on this host, or an http(s) address."""

    route = Route("POST", "/images/import", "long")
    answer: ClassVar[ImageInfo]
    source: str
    name: str | None = None
    format: str = "auto"
    arch: str | None = None
    firmware: str = "auto"
    sha256: str | None = None
    os: str = "unknown"
    version: str = ""
    disk: str | None = None
    max_size: int | None = None
    cloud_init: bool = False
    agent: bool | None = None
    disk_bus: str = "auto"
    nic_model: str = "auto"
    agent_port: str = "auto"
    root: str | None = None


class LookAtHost(Request):
    """Return what a capture of a live host would copy. `control` is the socket of the client's ssh."""

    route = Route("POST", "/images/capture/plan", "long")
    address: str
    control: str
    exclude: tuple[str, ...] = ()
    size: int | None = None


class CaptureImage(Request):
    """Make an image of a live Linux host. `control` is the socket of the client's ssh connection to it.

    `before` and `after` are commands for that host, as root, around the last pass of the copy.
    """

    route = Route("POST", "/images/capture", "long")
    answer: ClassVar[ImageInfo]
    address: str
    control: str
    name: str
    exclude: tuple[str, ...] = ()
    size: int | None = None
    bandwidth: int | None = None
    before: str | None = None
    after: str | None = None
    quiet: bool = True
    scrub: bool = False


class OriginOfCapture(Request):
    """Return the address of the host that an image was made of: {"address"}."""

    route = Route("GET", "/images/{reference}/host")
    reference: str


class RefreshImage(Request):
    """Copy what changed on the host since its image was made. `address`: where the host is now."""

    route = Route("POST", "/images/refresh", "long")
    answer: ClassVar[ImageInfo]
    ref: str
    control: str
    address: str | None = None
    bandwidth: int | None = None


class PullImage(Request):
    """Fetch an image of the catalogue, unless the image exists, or a container image ("docker://nginx").

    The catalogue says how to verify the download. `signed`: also check the signature of the checksum. For a
    container image, the policy of the host decides about signatures.
    """

    route = Route("POST", "/images/pull", "long")
    answer: ClassVar[ImageInfo]
    ref: str
    name: Annotated[str | None, Pattern(r"^[A-Za-z0-9][A-Za-z0-9._+/:@-]{0,127}$")] = None
    arch: str | None = None
    signed: bool = True


class PushImage(Request):
    """Write an image to a registry as an artifact of bough. `target` is a name like docker://HOST/REPO:TAG."""

    route = Route("POST", "/images/push", "long")
    answer: ClassVar[Pushed]
    ref: str
    target: str


class LockImage(Request):
    """Return the versions of the packages in an image, for a later build with the same versions."""

    route = Route("GET", "/images/{reference}/lock", slashes=True)
    reference: str


class GetImage(Request):
    """Describe an image: manifest, labels, users, and what a container image says about its program."""

    route = Route("GET", "/images/{reference}", slashes=True)
    answer: ClassVar[ImageInfo]
    reference: str
    arch: str | None = None


class DeleteImage(Request):
    """Delete an image. Refused while a machine needs the image."""

    route = Route("DELETE", "/images/{reference}", slashes=True)
    reference: str


class PruneImages(Request):
    """Delete every image that no machine needs and no label names."""

    route = Route("POST", "/images/prune")


class SearchCatalogue(Request):
    """List published images, and images built from packages."""

    route = Route("GET", "/catalogue")
    words: str = ""
    arch: str | None = None


class UpdateCatalogue(Request):
    """Fetch a newer catalogue. The new catalogue replaces the present one completely, or not at all."""

    route = Route("POST", "/catalogue/update", "long")
    source: str | None = None
    force: bool = False


class ResetCatalogue(Request):
    """Return to bough's own catalogue."""

    route = Route("DELETE", "/catalogue")

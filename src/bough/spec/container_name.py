"""Names of container images: docker://, oci:, oci-archive: and docker-archive:.

    docker://[HOST[:PORT]/]REPOSITORY[:TAG][@sha256:...]   an image in a registry
    oci:NAME                    docker://NAME, if NAME is no absolute path
    oci:/PATH[:TAG]             an OCI layout: a directory
    oci-archive:/PATH[:TAG]     an OCI layout in a tar file
    docker-archive:/PATH[:NAME] a file of `docker save`

The grammar is Docker's (distribution, "reference"). The client makes paths absolute (client/spec_files.py). A
name is for a program's argument, so the form excludes control characters.
"""

from __future__ import annotations

import contextlib
import ipaddress
import posixpath
import re
from dataclasses import dataclass
from typing import Literal

from bough.errors import InvalidInput
from bough.spec.problems import quote

Transport = Literal["docker", "oci", "oci-archive", "docker-archive"]

DOCKER = "docker://"
#: Transports of a file or a directory of this host.
LOCAL = ("oci:", "oci-archive:", "docker-archive:")
_MOST = 1024
_MOST_SHOWN = 120
_MOST_REPOSITORY = 255
_DEFAULT_REGISTRY = "docker.io"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_PART}(?:\.{_PART})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
#: The annotation org.opencontainers.image.ref.name of a layout, and Docker's names in an archive.
_NAME_INSIDE = re.compile(r"@?[A-Za-z0-9][A-Za-z0-9._+:@/-]{0,254}")
_EXAMPLE = "like docker://docker.io/library/nginx:1.27 or oci:nginx"


@dataclass(frozen=True)
class ContainerName:
    """The name of a container image, in full.

    Attributes:
        place: registry and repository, "docker.io/library/nginx", or an absolute path.
        tag: "latest"; of a layout or an archive: the image's name inside; "": none given.
        digest: "sha256:..." of the manifest or the index; "": none given.
    """

    transport: Transport
    place: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """Return the name that bough keeps as the label."""
        return self._render(self.tag, self.digest)

    @property
    def is_local(self) -> bool:
        """Return whether the image is a file or a directory of this host."""
        return self.transport != "docker"

    @property
    def registry(self) -> str:
        """Return the registry's host, with the port if the name has one. "" for a file or a directory."""
        return "" if self.is_local else self.place.partition("/")[0]

    @property
    def is_on_loopback(self) -> bool:
        """Return whether the registry is on this host. Docker, too, allows plain HTTP there."""
        host = self.registry.rpartition(":")[0] if re.search(r":\d+$", self.registry) else self.registry
        try:
            return ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def argument(self) -> str:
        """Return the name for skopeo, which takes a tag or a digest, but not both."""
        return self._render("" if self.digest else self.tag, self.digest)

    def at(self, digest: str) -> str:
        """Return the argument for skopeo that names one manifest of a registry's repository."""
        return self._render("", digest)

    def _render(self, tag: str, digest: str) -> str:
        begin = DOCKER if self.transport == "docker" else f"{self.transport}:"
        return f"{begin}{self.place}{f':{tag}' if tag else ''}{f'@{digest}' if digest else ''}"


def is_container_name(text: str) -> bool:
    """Return whether `text` begins with one of the four transports."""
    return text.startswith((DOCKER, *LOCAL))


def parse_container_name(text: str) -> ContainerName:
    """Read a name and fill in the defaults: docker.io, library/, :latest.

    Raises:
        InvalidInput: the name has a wrong form, or a relative path.
    """
    if len(text) > _MOST or not text.isprintable():
        raise _wrong(text, f"expected a name of at most {_MOST} printable characters")
    if text.startswith(DOCKER):
        return _parse_registry_name(text.removeprefix(DOCKER), text)
    transport, _, rest = text.partition(":")
    if transport == "oci" and not rest.startswith(("/", "./", "../", "~")):
        return _parse_registry_name(rest.removeprefix("//"), text)
    return _parse_path(transport, rest, text)


def normalise_image(text: str) -> str:
    """Return the name of an image as the store keeps it. Names of other images stay as they are.

    Raises:
        InvalidInput: see `parse_container_name`.
    """
    return str(parse_container_name(text)) if is_container_name(text) else text


def suggest_container(text: str) -> str:
    """Return an end of a hint for a name that no image has: "; a container image: oci:nginx". "" if the text
    could not be one.
    """
    with contextlib.suppress(InvalidInput):
        name = f"oci:{text.removeprefix('docker:')}"
        parse_container_name(name)
        return f"; a container image: {name}"
    return ""


def short_name(text: str) -> str:
    """Return the last part of a container image's name without tag: "nginx". Other names stay as they are."""
    for name in (text, text.rpartition("@")[0]):  # an architecture may follow the name
        with contextlib.suppress(InvalidInput):
            return parse_container_name(name).place.rpartition("/")[2] if is_container_name(name) else text
    return text


def _parse_registry_name(rest: str, text: str) -> ContainerName:
    if rest.startswith(("http:", "https:")):
        raise _wrong(text, "a registry's name has no http://", f"for example {DOCKER}registry.example/app")
    rest, at, digest = rest.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _wrong(text, "expected sha256: and 64 hexadecimal digits in lower case after '@'")
    path, tag = _split_tag(rest)
    if tag is not None and not _TAG.fullmatch(tag):
        raise _wrong(text, f"{quote(tag)} is not a tag: letters, digits and . _ -, at most 128")
    registry, repository = _split_registry(path)
    if not repository:
        raise _wrong(text, "the name of the repository is missing", f"a name is {_EXAMPLE}")
    if not _REGISTRY.fullmatch(registry):
        raise _wrong(text, f"{quote(registry)} is not the host of a registry")
    if not _REPOSITORY.fullmatch(repository) or len(registry) + len(repository) >= _MOST_REPOSITORY:
        better = repository.lower()
        fits = better != repository and _REPOSITORY.fullmatch(better)
        raise _wrong(
            text,
            f"{quote(repository)} is not the name of a repository: lower-case letters, digits and . _ - /",
            f"did you mean {DOCKER}{registry}/{better}?" if fits else None,
        )
    default = "" if digest else "latest"
    return ContainerName("docker", f"{registry}/{repository}", tag or default, digest)


def _split_tag(text: str) -> tuple[str, str | None]:
    """Split off the tag: a colon before the last slash is the one of a port."""
    before, colon, tag = text.rpartition(":")
    return (before, tag) if colon and "/" not in tag else (text, None)


def _split_registry(path: str) -> tuple[str, str]:
    """Split registry and repository as Docker does: a first part with a dot or a colon is a host."""
    first, slash, rest = path.partition("/")
    is_host = bool(slash) and (
        any(c in first for c in ".:[") or first == "localhost" or first != first.lower()
    )
    registry, repository = (first, rest) if is_host else (_DEFAULT_REGISTRY, path)
    if registry == "index.docker.io":
        registry = _DEFAULT_REGISTRY
    if registry == _DEFAULT_REGISTRY and repository and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository


def _parse_path(transport: str, rest: str, text: str) -> ContainerName:
    path, colon, inside = rest.partition(":")
    if not path.startswith("/"):
        raise _wrong(text, f"{quote(path)} is not an absolute path")
    if colon and not _NAME_INSIDE.fullmatch(inside):
        raise _wrong(text, f"{quote(inside)} is not the name of an image inside {quote(path)}")
    # A path of two slashes is another path by POSIX only, and normpath keeps both.
    path = posixpath.normpath(path).replace("//", "/")
    kinds: dict[str, Transport] = {"oci": "oci", "oci-archive": "oci-archive"}
    return ContainerName(kinds.get(transport, "docker-archive"), path, inside)


def _wrong(text: str, why: str, hint: str | None = None) -> InvalidInput:
    shown = repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")
    return InvalidInput(f"{shown} is not the name of a container image: {why}", hint=hint)

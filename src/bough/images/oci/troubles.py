"""skopeo's errors in the user's words: what is wrong, and what to type.

The texts are those of the Go library containers/image, of versions 5.23 (Debian 12) and later.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bough.errors import BadImage, BoughError, DownloadFailed, HostLacks, NoSpace, NotFound
from bough.spec.container_name import ContainerName
from bough.storage import NO_SPACE_HINT

_POLICY = "/etc/containers/policy.json (or ~/.config/containers/policy.json)"
_AUTH = "$REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json or ~/.docker/config.json"

_Make = Callable[[ContainerName, str], BoughError]


def translate(message: str, name: ContainerName) -> BoughError | None:
    """Return the error for skopeo's message. None: the transfer broke off, and another attempt may help."""
    for pattern, make in _TABLE:
        if pattern.search(message):
            return make(name, message)
    if _PASSING.search(message):
        return None
    return _failed(name, f"could not be pulled: {shorten(message)}")


def shorten(message: str) -> str:
    """Return the last part of Go's chain of messages, which names the cause."""
    plain = re.sub(r'Error parsing image name "[^"]*": ', "", message)
    return plain if len(plain) <= 300 else f"...{plain[-300:]}"


def _failed(name: ContainerName, what: str, hint: str | None = None) -> DownloadFailed:
    return DownloadFailed(f"{name} {what}", hint=hint, url=str(name))


def _repository(name: ContainerName) -> str:
    return name.place.partition("/")[2]


def _no_such_image(name: ContainerName, _: str) -> BoughError:
    if name.digest:
        what = f"the registry {name.registry} has no manifest {name.digest} in {_repository(name)}"
    else:
        what = f"the registry {name.registry} has no image {_repository(name)}:{name.tag}"
    hint = f"list the tags: skopeo list-tags docker://{name.place}"
    return NotFound(what, hint=hint, kind="image")


def _needs_login(name: ContainerName, message: str) -> BoughError:
    if re.search(r"invalid username/password|incorrect username or password", message):
        what = f"is refused: the registry {name.registry} does not accept the password in your auth file"
        return _failed(name, what, f"skopeo login {name.registry}")
    what = (
        f"is refused: the registry {name.registry} asks for a login, or has no repository {_repository(name)}"
    )
    return _failed(name, what, f"skopeo login {name.registry} (auth file: {_AUTH})")


def _bad_auth_file(name: ContainerName, message: str) -> BoughError:
    path = re.search(r'(?:file|at) \\?"([^"\\]+)', message)
    return _failed(
        name,
        f"needs your auth file, which is damaged: {path[1] if path else shorten(message)}",
        f"write it again: skopeo login {name.registry}",
    )


def _too_many(name: ContainerName, _: str) -> BoughError:
    hint = f"wait, or log in for a higher limit: skopeo login {name.registry}"
    return _failed(name, f"is refused for now: the registry {name.registry} counts too many requests", hint)


def _no_such_host(name: ContainerName, message: str) -> BoughError:
    host = re.search(r"lookup ([^ ]+)", message)
    return _failed(
        name,
        f"cannot be pulled: the host {host[1] if host else name.registry} is not known to DNS",
        "check the name, the network and /etc/resolv.conf; mirrors are in registries.conf",
    )


def _proxy(name: ContainerName, message: str) -> BoughError:
    return _failed(
        name,
        f"cannot be pulled: the proxy cannot be reached: {_cause(message)}",
        "check https_proxy and no_proxy in the service's environment; then: bough serve --stop",
    )


def _unreachable(name: ContainerName, message: str) -> BoughError:
    return _failed(
        name,
        f"cannot be pulled: the registry {name.registry} cannot be reached: {_cause(message)}",
        "check the network; a proxy is in https_proxy, mirrors are in registries.conf",
    )


def _cause(message: str) -> str:
    return message.rpartition("dial ")[2][:200] if "dial " in message else shorten(message)


def _plain_http(name: ContainerName, _: str) -> BoughError:
    return _failed(
        name,
        f"cannot be pulled: the registry {name.registry} speaks HTTP without TLS",
        f'permit it in registries.conf: [[registry]] location = "{name.registry}" insecure = true',
    )


def _certificate(name: ContainerName, message: str) -> BoughError:
    cause = message.rpartition("x509: ")[2] or shorten(message)
    return _failed(
        name,
        f"cannot be pulled: the certificate of {name.registry} is not valid: {cause[:200]}",
        f"put the registry's CA into /etc/containers/certs.d/{name.registry}/ca.crt",
    )


def _wrong_digest(name: ContainerName, message: str) -> BoughError:
    digests = re.findall(r"sha256:[0-9a-f]{64}", message)
    told = f": it has the digest {digests[1]}, and not {digests[0]}" if len(digests) > 1 else ""
    part = "the configuration" if "onfig" in message else "a layer"
    return BadImage(
        f"{part} of {name} is damaged or cut off{told}",
        hint="push the image to the registry again; a proxy on the way may also change content",
    )


def _missing_blob(name: ContainerName, message: str) -> BoughError:
    digest = re.search(r"sha256:[0-9a-f]{64}", message)
    return BadImage(
        f"{name} is not complete: a part is missing{f': {digest[0]}' if digest else ''}",
        hint="push the image to the registry again",
    )


def _rejected(name: ContainerName, message: str) -> BoughError:
    reason = message.partition("Source image rejected: ")[2]
    return BadImage(
        f"the policy of this host refuses {name}: {reason[:300]}",
        hint=f"choose a signed image, or change {_POLICY}: man containers-policy.json",
    )


def _no_policy(name: ContainerName, message: str) -> BoughError:
    cause = message.partition("trust policy: ")[2][:200]
    return HostLacks(
        f"skopeo cannot read the policy for signatures, needed to pull {name}: {cause}",
        hint="sudo apt install golang-github-containers-common, or repair the file",
    )


def _configuration(name: ContainerName, message: str) -> BoughError:
    return HostLacks(
        f"skopeo cannot read its configuration, needed to pull {name}: {shorten(message)}",
        hint="repair the file: man containers-registries.conf",
    )


def _no_space(name: ContainerName, _: str) -> BoughError:
    return NoSpace(f"no space left for {name}", hint=NO_SPACE_HINT)


def _not_inside(name: ContainerName, _: str) -> BoughError:
    inside = f" called {name.tag!r}" if name.tag else " without a name"
    return NotFound(
        f"{name.place} has no image{inside}",
        hint=f"list the images: skopeo inspect --raw {name.transport}:{name.place}",
        kind="image",
    )


def _choose_inside(name: ContainerName, _: str) -> BoughError:
    return NotFound(
        f"{name.place} has several images",
        hint=f"name one of them: {name.transport}:{name.place}:NAME",
        kind="image",
    )


def _no_archive(name: ContainerName, message: str) -> BoughError:
    kinds = {"oci": "an OCI layout", "oci-archive": "an archive of an OCI layout"}
    kind = kinds.get(name.transport, "an archive of `docker save`")
    return BadImage(f"{name.place} is not {kind}: {shorten(message)}")


_TABLE: tuple[tuple[re.Pattern[str], _Make], ...] = (
    (re.compile(r"no space left on device|disk quota exceeded"), _no_space),
    (re.compile(r"[Ee]rror loading trust policy|loading trust policy"), _no_policy),
    (re.compile(r"Source image rejected"), _rejected),
    (
        re.compile(r"Digest did not match|does not match expected|[Mm]anifest does not match"),
        _wrong_digest,
    ),
    (re.compile(r"getting username and password"), _bad_auth_file),
    (re.compile(r"loading registries configuration|registries\.conf|registries\.d"), _configuration),
    (re.compile(r"toomanyrequests|too many requests|\b429\b"), _too_many),
    (re.compile(r"unauthorized|authentication required|access .* denied|denied:|\b40[13]\b"), _needs_login),
    (re.compile(r"invalid username/password"), _needs_login),
    (
        re.compile(r"[Ee]rror fetching blob: invalid status code from registry 404|blob unknown"),
        _missing_blob,
    ),
    (re.compile(r"(?:manifest|name|repository) (?:name )?(?:unknown|not known)|\b404\b"), _no_such_image),
    (
        re.compile(r"no descriptor found for reference|[Tt]ag \S+ not found|not found in .*archive"),
        _not_inside,
    ),
    (re.compile(r"more than one image|multiple images|exactly one item"), _choose_inside),
    (re.compile(r"proxyconnect"), _proxy),
    (re.compile(r"server gave HTTP response to HTTPS client"), _plain_http),
    (re.compile(r"x509: |certificate"), _certificate),
    (re.compile(r"no such host|server misbehaving"), _no_such_host),
    (re.compile(r"connection refused|no route to host|network is unreachable"), _unreachable),
    (re.compile(r"i/o timeout|TLS handshake timeout|connection timed out"), _unreachable),
    (re.compile(r"invalid tar header|index\.json|manifest\.json|oci-layout|file name too long"), _no_archive),
    (re.compile(r"blobs/sha256/[0-9a-f]+: no such file"), _missing_blob),
)
#: Causes that may pass.
_PASSING = re.compile(
    r"unexpected EOF|\bEOF\b|connection reset|broken pipe|\b50[0234]\b|deadline exceeded|server closed|GOAWAY"
)

"""skopeo's errors, as skopeo 1.9 wrote them, in the user's words."""

from __future__ import annotations

import pytest

from bough.errors import BadImage, BoughError, DownloadFailed, HostLacks, NoSpace, NotFound
from bough.images.oci.skopeo import unescape
from bough.images.oci.troubles import translate
from bough.spec.container_name import parse_container_name

A, B = ("sha256:" + digits * 32 for digits in ("ab", "cd"))
PARSING = 'Error parsing image name "docker://r.example:5000/app:1": '
PINGING = f'{PARSING}pinging container registry r.example:5000: Get "https://r.example:5000/v2/": '


@pytest.mark.parametrize(
    ("message", "kind", "told", "hint"),
    [
        (
            f"{PARSING}reading manifest 1 in r.example:5000/app: manifest unknown: manifest unknown",
            NotFound,
            "the registry r.example:5000 has no image app:1",
            "skopeo list-tags docker://r.example:5000/app",
        ),
        (
            f"{PARSING}reading manifest 1 in r.example:5000/app: name unknown: repository name not known",
            NotFound,
            "has no image app:1",
            "list-tags",
        ),
        (
            f"{PARSING}reading manifest 1 in r.example:5000/app: unauthorized: authentication required",
            DownloadFailed,
            "asks for a login, or has no repository app",
            "skopeo login r.example:5000",
        ),
        (
            f"{PARSING}reading manifest 1 in r.example:5000/app: denied: requested access is denied",
            DownloadFailed,
            "asks for a login",
            "auth.json",
        ),
        (
            f"{PARSING}unable to retrieve auth token: invalid username/password: unauthorized: incorrect",
            DownloadFailed,
            "does not accept the password",
            "skopeo login",
        ),
        (
            f'{PARSING}getting username and password: * reading JSON file "/x/auth.json": bad',
            DownloadFailed,
            "auth file, which is damaged: /x/auth.json",
            "skopeo login",
        ),
        (
            f"{PARSING}toomanyrequests: You have reached your pull rate limit",
            DownloadFailed,
            "too many",
            "wait",
        ),
        (
            f"{PINGING}dial tcp 10.0.0.1:5000: connect: connection refused",
            DownloadFailed,
            "cannot be reached: tcp 10.0.0.1:5000: connect: connection refused",
            "network",
        ),
        (f"{PINGING}dial tcp 10.0.0.1:5000: i/o timeout", DownloadFailed, "cannot be reached", "network"),
        (
            f"{PINGING}dial tcp: lookup r.example on 10.0.0.53:53: no such host",
            DownloadFailed,
            "the host r.example is not known to DNS",
            "resolv.conf",
        ),
        (
            f"{PINGING}proxyconnect tcp: dial tcp 127.0.0.1:1: connect: connection refused",
            DownloadFailed,
            "the proxy cannot be reached: tcp 127.0.0.1:1",
            "https_proxy",
        ),
        (
            f"{PINGING}http: server gave HTTP response to HTTPS client",
            DownloadFailed,
            "speaks HTTP without TLS",
            'location = "r.example:5000" insecure = true',
        ),
        (
            f"{PINGING}x509: certificate signed by unknown authority",
            DownloadFailed,
            "the certificate of r.example:5000 is not valid: certificate signed by unknown authority",
            "/etc/containers/certs.d/r.example:5000/ca.crt",
        ),
        (
            f"writing blob: happened during read: Digest did not match, expected {A}, got {B}",
            BadImage,
            f"damaged or cut off: it has the digest {B}, and not {A}",
            "push the image",
        ),
        (
            f"reading blob {A}: Error fetching blob: invalid status code from registry 404 (Not Found)",
            BadImage,
            f"a part is missing: {A}",
            "push the image",
        ),
        (
            "Source image rejected: A signature was required, but no signature exists",
            BadImage,
            "refuses docker://r.example:5000/app:1: A signature was required, but no signature exists",
            "containers-policy.json",
        ),
        (
            "Error loading trust policy: open /etc/containers/policy.json: no such file or directory",
            HostLacks,
            "policy for signatures",
            "golang-github-containers-common",
        ),
        ('loading registries configuration "/x": toml: line 1', HostLacks, "its configuration", "registries"),
        ("writing blob: write /x: no space left on device", NoSpace, "no space left", "prune"),
        ("something new", DownloadFailed, "could not be pulled: something new", None),
    ],
)
def test_errors_of_a_registry(message: str, kind: type[BoughError], told: str, hint: str | None) -> None:
    error = translate(message, parse_container_name("docker://r.example:5000/app:1"))
    assert type(error) is kind
    assert told in error.message
    assert error.hint is None if hint is None else hint in (error.hint or "")


@pytest.mark.parametrize(
    ("name", "message", "kind", "told"),
    [
        (
            "oci:/l:x",
            'Error parsing image name: no descriptor found for reference "x"',
            NotFound,
            "called 'x'",
        ),
        (
            "oci-archive:/a.tar",
            'untarring file "/var/tmp/o": archive/tar: invalid tar header',
            BadImage,
            "layout",
        ),
        ("docker-archive:/a.tar", "loading tar component manifest.json: x", BadImage, "`docker save`"),
        ("oci:/l", "open /l/index.json: no such file or directory", BadImage, "/l is not an OCI layout"),
        ("oci:/l", f"open /l/blobs/sha256/{'ab' * 32}: no such file or directory", BadImage, "not complete"),
    ],
)
def test_errors_of_files(name: str, message: str, kind: type[BoughError], told: str) -> None:
    error = translate(message, parse_container_name(name))
    assert type(error) is kind
    assert told in error.message


def test_a_digest_that_the_registry_lacks() -> None:
    error = translate("manifest unknown", parse_container_name(f"docker://r.example/app@{A}"))
    assert isinstance(error, NotFound)
    assert f"has no manifest {A} in app" in error.message


@pytest.mark.parametrize(
    "message",
    [
        "reading blob: unexpected EOF",
        "read tcp 1.2.3.4:5->6.7.8.9:443: connection reset by peer",
        "received unexpected HTTP status: 503 Service Unavailable",
    ],
)
def test_passing_errors_are_tried_again(message: str) -> None:
    assert translate(message, parse_container_name("oci:nginx")) is None


def test_messages_become_one_line() -> None:
    assert unescape(r"a \"b\"\n\t* c \\ d" + "\x1b[31m") == 'a "b" * c \\ d [31m'

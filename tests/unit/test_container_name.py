"""Names of container images: what they mean in full, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from bough.client.spec_files import resolve_image, resolve_recipe, resolve_sources
from bough.errors import InvalidInput, InvalidSpec
from bough.images.store import split_label
from bough.spec import parse_spec
from bough.spec.container_name import (
    is_container_name,
    normalise_image,
    parse_container_name,
    short_name,
    suggest_container,
)

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("oci:nginx", "docker://docker.io/library/nginx:latest"),
        ("oci:nginx:1.27", "docker://docker.io/library/nginx:1.27"),
        ("oci:docker.io/nginx", "docker://docker.io/library/nginx:latest"),
        ("oci:index.docker.io/a/b", "docker://docker.io/a/b:latest"),
        ("docker://nginx", "docker://docker.io/library/nginx:latest"),
        ("docker://team/app", "docker://docker.io/team/app:latest"),
        ("docker://localhost/app", "docker://localhost/app:latest"),
        ("docker://127.0.0.1:5000/app", "docker://127.0.0.1:5000/app:latest"),
        ("docker://[::1]:5000/a__b/c.d:X_1", "docker://[::1]:5000/a__b/c.d:X_1"),
        ("docker://r.example/a", "docker://r.example/a:latest"),
        (f"oci:nginx@{DIGEST}", f"docker://docker.io/library/nginx@{DIGEST}"),
        (f"oci:nginx:1@{DIGEST}", f"docker://docker.io/library/nginx:1@{DIGEST}"),
        ("oci:/srv/layout", "oci:/srv/layout"),
        ("oci:/srv//x/../layout/:v1", "oci:/srv/layout:v1"),
        ("oci-archive:/srv/a.tar:v1", "oci-archive:/srv/a.tar:v1"),
        ("docker-archive:/srv/a b.tar:nginx:1", "docker-archive:/srv/a b.tar:nginx:1"),
        ("docker-archive:/srv/a.tar:@0", "docker-archive:/srv/a.tar:@0"),
    ],
)
def test_a_name_is_filled_in(name: str, full: str) -> None:
    assert normalise_image(name) == full
    assert normalise_image(full) == full


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("docker://", "the name of the repository is missing"),
        ("oci:", "the name of the repository is missing"),
        ("docker://127.0.0.1:5000/", "the name of the repository is missing"),
        ("docker://Nginx", "lower-case"),
        ("docker://a/../b", "lower-case"),
        ("docker://a b/c", "lower-case"),
        ("docker://https://r.example/a", "no http"),
        ("docker://r_.example/a", "not the host"),
        ("docker://r.example:x/a", "not the host"),
        ("docker://nginx:", "not a tag"),
        ("docker://nginx:a/b:c d", "not a tag"),
        ("docker://nginx:-x", "not a tag"),
        ("docker://nginx@sha256:ab", "64 hexadecimal"),
        ("docker://nginx@" + DIGEST.upper(), "64 hexadecimal"),
        ("docker://" + "a" * 300, "lower-case"),
        ("docker://" + "a" * 3000, "at most 1024"),
        ("docker://nginx\n", "printable"),
        ("oci:./here", "not an absolute path"),
        ("oci-archive:a.tar", "not an absolute path"),
        ("docker-archive:/a.tar:x y", "not the name of an image inside"),
    ],
)
def test_a_wrong_name_is_told(name: str, told: str) -> None:
    assert is_container_name(name)
    with pytest.raises(InvalidInput, match=told):
        parse_container_name(name)


def test_a_hint_corrects_upper_case() -> None:
    with pytest.raises(InvalidInput) as told:
        parse_container_name("docker://r.example/Team/App")
    assert told.value.hint == "did you mean docker://r.example/team/app?"


def test_a_digest_goes_before_a_tag_for_skopeo() -> None:
    name = parse_container_name(f"oci:nginx:1@{DIGEST}")
    assert name.argument == name.at(DIGEST) == f"docker://docker.io/library/nginx@{DIGEST}"
    assert parse_container_name("oci:nginx").argument == "docker://docker.io/library/nginx:latest"


@pytest.mark.parametrize(
    ("name", "is_on_loopback"),
    [
        ("docker://127.0.0.1:5000/a", True),
        ("docker://127.9.9.9/a", True),
        ("docker://[::1]:5000/a", True),
        ("docker://[::1]/a", True),
        ("docker://localhost/a", True),
        ("docker://localhost:5000/a", True),
        ("docker://localhost.example/a", False),
        ("docker://10.0.0.1:5000/a", False),
        ("oci:nginx", False),
        ("oci:/127.0.0.1/a", False),
    ],
)
def test_which_registries_are_on_this_host(name: str, is_on_loopback: bool) -> None:
    assert parse_container_name(name).is_on_loopback is is_on_loopback


def test_other_names_are_no_container_images() -> None:
    for name in ("debian:12", "web", "oci", "docker", "ocix:a", "fedora:44"):
        assert not is_container_name(name)
        assert normalise_image(name) == short_name(name) == name


def test_a_hint_for_names_that_no_image_has() -> None:
    assert suggest_container("nginx:1") == "; a container image: oci:nginx:1"
    assert suggest_container("docker:nginx") == "; a container image: oci:nginx"
    assert suggest_container("r.example:5000/team/app") == "; a container image: oci:r.example:5000/team/app"
    assert suggest_container("No Name") == suggest_container("./x") == ""


def test_short_names() -> None:
    assert short_name("oci:registry.example/team/app:1@arm64") == "app"
    assert short_name(f"docker://nginx@{DIGEST}") == "nginx"
    assert short_name("docker://Not A Name") == "docker://Not A Name"


def test_a_label_is_the_full_name_with_its_architecture_apart() -> None:
    assert split_label("oci:nginx@arm64") == ("docker://docker.io/library/nginx:latest", "aarch64")
    assert split_label(f"oci:nginx@{DIGEST}") == (f"docker://docker.io/library/nginx@{DIGEST}", None)
    assert split_label(f"oci:nginx@{DIGEST}@riscv64") == (
        f"docker://docker.io/library/nginx@{DIGEST}",
        "riscv64",
    )
    assert split_label("docker://Wrong") == ("docker://Wrong", None)


def test_a_spec_takes_them() -> None:
    assert parse_spec({"image": "oci:nginx@amd64"}).image == "docker://docker.io/library/nginx:latest@x86_64"
    assert parse_spec({"image": f"oci:nginx@{DIGEST}"}).image == f"docker://docker.io/library/nginx@{DIGEST}"
    with pytest.raises(InvalidSpec, match="lower-case"):
        parse_spec({"image": "oci:Nginx"})


def test_paths_become_absolute_in_the_client(tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    (tmp_path / "nginx").mkdir()
    (tmp_path / "layout" / "oci-layout").write_text("{}")
    assert resolve_image("oci:layout:v1", tmp_path) == f"oci:{tmp_path}/layout:v1"
    assert resolve_image("oci:./nginx", tmp_path) == f"oci:{tmp_path}/nginx"
    assert resolve_image("oci:nginx", tmp_path) == "oci:nginx", "a directory that is no layout"
    assert resolve_image("oci:/x/y:z", tmp_path) == "oci:/x/y:z"
    assert resolve_image("docker-archive:a.tar:n:1", tmp_path) == f"docker-archive:{tmp_path}/a.tar:n:1"
    assert resolve_image("docker://a:1", tmp_path) == "docker://a:1"
    assert resolve_image("debian:12", tmp_path) == "debian:12"
    assert resolve_sources({"image": "oci:layout"}, tmp_path)["image"] == f"oci:{tmp_path}/layout"
    assert resolve_recipe({"base": "oci:layout"}, tmp_path)["base"] == f"oci:{tmp_path}/layout"

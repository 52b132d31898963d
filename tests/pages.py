"""The examples of README.md and docs/: the ones that run, and the reasons for the others.

tests/acceptance/test_pages.py runs each page's commands in order, in one shell, unchanged.
tests/unit/test_every_command.py fails for a block that is neither run nor named in NOT_RUN.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHELL = ("sh", "console", "")


@dataclass(frozen=True)
class Page:
    """Prerequisites of a page's commands: a script; `web`: a running machine of that name."""

    before: str = ""
    web: bool = False


#: Pages whose commands test_pages.py runs.
PAGES = {
    "docs/quickstart.md": Page(),
    "docs/snapshots.md": Page(web=True),
    "docs/mounts.md": Page(before="mkdir -p src more ~/data"),
    "docs/networks.md": Page(),
    "docs/faults.md": Page(),
    "docs/concepts.md": Page(before="mkdir -p ~/.config/systemd/user"),
}

#: Commands that do not run, by their first words -> reason.
NOT_RUN = {
    "README.md": {
        "make demo": "installs packages; tests/acceptance/test_install.py installs, examples/demo.py shows",
        ".venv/bin/bough run debian:12": "a shell on a terminal; test_guest.py has one",
    },
    "docs/quickstart.md": {"make demo": "as in README.md"},
    "docs/snapshots.md": {
        "bough fork web --count 20": "the next line forks three; bench/fork.py forks twenty",
        "bough export web - | ssh": "needs another host; test_bundles.py uses a pipe",
        "bough export web docker:": "names a registry that is not there; test_registries.py has one",
        "bough import docker:": "as the line above",
    },
    "docs/guests.md": {
        "bough image import win11": "no Windows is here; test_hardware.py has the settings",
        "bough create win11": "as the line above",
        "bough start office": "as the line above",
    },
    "docs/images.md": {
        "scripts/setup.sh arm64": "installs packages for another processor",
        "bough run --arch arm64": "takes an emulated processor a quarter of an hour: `make test-foreign`",
        "bough doctor --arch riscv64": "fails where that QEMU is not installed; test_options.py has --arch",
        "bough image list": "shows the label of the machine above; test_life.py lists images",
        "bough image build -f": "a directory with a Dockerfile is not here; test_dockerfiles.py builds one",
        "bough image build ./app": "as the line above",
        "bough run app:dev": "as the lines above",
        "bough image lock web": "builds a recipe with nginx; test_options.py locks, test_recipes.py builds",
        "bough image build ./web.toml": "as the line above",
        "bough image import": "names files and addresses that are not here; test_options.py imports",
        "bough image search": "test_cloud_image.py and test_options.py search a publisher of their own",
        "bough image push": "names a registry that is not there; test_registries.py has one",
        "bough image pull": "downloads from a publisher; the tests pull from one of their own",
        "bough run oci:nginx": "of a public registry; test_container_pull.py has a registry of its own",
        "bough image info oci:nginx": "as the line above",
        "bough image catalogue": "names an address that is not there; test_options.py has one",
        "bough create cloud": "of an image that was downloaded; test_cloud_image.py does this",
        "bough exec web -- cloud-init": "as the line above",
        "bough screenshot rescue": "test_media.py does this block with an ISO of its own",
        "bough type rescue": "as the line above",
        "bough screen rescue": "as the line above",
    },
    "docs/diff.md": {"bough diff": "needs two machines and two images; test_differences.py compares its own"},
    "docs/containers.md": {
        "bough ": "names images of registries; test_containers.py runs each kind with images made there",
        "curl": "as the lines above",
    },
    "docs/capture.md": {
        "bough ": "names a host that is not here; test_capture.py captures a machine",
        "--before": "as the line above",
    },
    "docs/examples.md": {
        "cd examples": "builds an image; test_examples.py runs the tests of each example",
        "pytest": "as the line above",
        "bough ": "as the line above",
    },
    "docs/docker.md": {
        "bough image build": "builds an image; test_docker.py does all of this page with an image of its own",
        "bough ": "as the line above",
        "export DOCKER_HOST": "as the line above",
        "docker ": "as the line above",
        "DOCKER_HOST=": "as the line above",
    },
    "docs/tasks.md": {"bough image search": "test_options.py searches"},
    "docs/projects.md": {"bough ": "each line boots machines; test_projects.py runs each"},
    "docs/concepts.md": {"systemctl --user": "no systemd of a user in a test; test_upgrade.py has the unit"},
}

#: Blocks of Python that do not run alone -> reason, by one line of the block.
FRAGMENTS = {
    'project = hv.project("bough.toml")': "test_projects.py has each method of this page",
    "project.up(ephemeral=True)": "test_projects.py has each method of this page",
    "with project.fork(ephemeral=True) as fork": "test_project_forks.py forks",
    'with network.partition([["db"], ["app"]]):': "test_faults.py has each method of this page",
    'network = hv.create_network("back")': "test_networks.py has each method of this page",
    'snapshot = vm.snapshot("ready")': "upgrades packages from the network; test_python.py forks",
    'with hv.run("oci:nginx") as web': "names images of registries; test_containers.py has each call",
    'with hv.run("debian:12", mounts=': "runs make on a source that is not here; test_mounts.py mounts",
    "def install(machine):": "of an app that is not here; test_pytest_plugin.py runs examples/pytest",
    "def test_survives_a_power_cut": "as above",
    "def test_app_waits_for_its_database": "as above; test_pytest_projects.py has a project",
    'vm.succeed("systemctl start nginx")': "needs nginx; test_words.py has each word",
    'done = vm.exec("sort"': "test_python.py has each method of this page",
    'with vm.spawn("sh"': "as above",
    'vm.write_file("/etc/motd"': "as above",
    'hv.build_image("debian:12"': "as above",
    "except InvalidSpec as error": "as above",
}


def pages() -> list[str]:
    """Return all pages for users, except for the generated reference."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found if path.name != "cli.md"]


def blocks(page: str) -> list[tuple[str, str]]:
    """Return language and text of the code blocks of a page, also of blocks inside a list."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [(language, textwrap.dedent(text)) for _, language, text in found]


def commands_of(page: str) -> list[str]:
    """Return the lines of a page that a user types into a shell."""
    found = []
    for language, text in blocks(page):
        lines = text.splitlines()
        if language == "console":
            found += [line[2:] for line in lines if line.startswith("$ ")]
        elif language == "sh" or (not language and re.match("bough [a-z]", text)):
            found += lines
    return [line.strip() for line in found if line.strip()]


def is_run(page: str, line: str) -> bool:
    return page in PAGES and not any(line.startswith(begin) for begin in NOT_RUN.get(page, {}))


def script_of(page: str) -> str:
    """Return the commands of a page that run, as a script."""
    return "\n".join(line for line in commands_of(page) if is_run(page, line))


def commands_in_script(script: str) -> Iterator[list[str]]:
    """Yield the words of each call of bough in a script."""
    for line in re.sub(r"\\\n", " ", script).splitlines():
        for piece in re.split(r"\|\||&&|[|;]|\$\(|<\(", line):
            part = piece.strip()
            if re.match(r"(?:\S*/)?bough ", part):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:
                    words = part.split()
                yield [word for word in words[1:] if not re.match(r"\d*[<>]", word)]

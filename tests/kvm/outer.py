"""The outer machine: an emulated machine whose CPU has SVM, so that KVM works inside it.

TCG emulates AMD's SVM with nested paging. The outer machine boots once and is snapshotted. Tests run in
forks of that snapshot. Two snapshots are kept in one home, so that a change of bough does not cost a boot:

    base-12-<key>     booted, with Debian's image and the packages of bough and its tests
    ready-12-<key>    with bough's wheel, two homes (user dev, root), a probed host and a booted small guest

A key is a digest of what the snapshot was made from. BOUGH_TEST_CACHE keeps the home for the next run.
BOUGH_TEST_KVM_BASE=debian:13 makes the outer machine a Debian 13, with QEMU 10.0.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bough
from bough.client.process import Process
from bough.errors import BoughError, NotFound
from bough.paths import Home
from tests.kvm.small_guest import build_small_guest
from tests.run import Images

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
IMAGE = "debian:12"
PLACE = "/var/lib/nest"
USERS = ("dev", "root")
_RECIPE = HERE / "outer.toml"
_HARDWARE: dict[str, Any] = {"cpu": "EPYC", "vcpus": 2, "memory": "6GiB", "ssh_keys": []}
_BASE = os.environ.get("BOUGH_TEST_KVM_BASE", IMAGE)
_VERSION = _BASE.partition(":")[2]
_PYTHON = {"12": "3.11", "13": "3.13"}[_VERSION]
#: Each wheel runs on Debian 12.
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")
_TEST_PACKAGES = ("pytest>=8", "pytest-asyncio>=0.23", "pytest-timeout>=2")
#: Everything inside is emulated twice: a guest's boot takes minutes.
_STEP_S = 1800.0
_REPORT = "/tmp/report.xml"
_PYTEST = (
    *("python3", "-m", "pytest", "-p", "no:cacheprovider", "-v", "-s", "--timeout", "1500"),
    *("--junitxml", _REPORT),
)
_COMMAND = """#!/usr/bin/python3
import sys
from bough.cli.entry import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Finished:
    """The end of tests in a fork of the outer machine. `report`: None if pytest wrote none."""

    output: str
    report: bytes | None


class Outer:
    """The outer machine in a home of its own.

    Args:
        home: of the outer machine; kept.
        images: built images of this run, and of earlier ones.
        say: called with each step.
    """

    def __init__(self, home: Home, images: Images, say: Callable[[str], None] = print) -> None:
        self._home = home
        self._images = images
        self._say = say
        self._ready: bough.Snapshot | None = None

    def run(self, tests: Sequence[str], *, user: str) -> Finished:
        """Run tests in one fork, as `user`. The fork is deleted afterwards."""
        with self.fork() as machine:
            self.push_tests(machine)
            environment = environment_of(user) | {"BOUGH_TEST_KVM": "inside", "PYTHONUNBUFFERED": "1"}
            with machine.spawn(
                *_PYTEST, *tests, user=user, cwd=f"{PLACE}/{user}/checkout", env=environment
            ) as process:
                output = self._follow(process)
            try:
                report: bytes | None = machine.read_file(_REPORT)
            except BoughError:
                report = None
            return Finished(output, report)

    def _follow(self, process: Process) -> str:
        """Return the output, and print it as it comes. Ends after too long a pause of the output."""
        output = b""
        try:
            while (read := process.read(_STEP_S)) is not None:
                output += read[1]
                print(read[1].decode(errors="replace"), end="", flush=True)
        except (TimeoutError, BoughError) as error:
            output += f"\nthe output ended: {error!r}\n".encode()
        return output.decode(errors="replace")

    @contextmanager
    def fork(self) -> Iterator[bough.Machine]:
        """Yield a fork of the prepared outer machine."""
        machine = self.prepare().fork(ephemeral=True)
        try:
            yield machine
        finally:
            machine.discard()

    def push_tests(self, machine: bough.Machine) -> None:
        """Copy the tests of this checkout, which change more often than bough."""
        pack = [
            "tar",
            "-cf",
            "-",
            "--exclude",
            "__pycache__",
            "--exclude",
            "cases",
            "tests",
            "pyproject.toml",
        ]
        data = subprocess.run(pack, cwd=ROOT, check=True, capture_output=True).stdout
        for user in USERS:
            machine.exec("tar", "-xf", "-", "-C", f"{PLACE}/{user}/checkout", input=data, check=True)

    # -- preparation ----------------------------------------------------------------------------------

    def prepare(self) -> bough.Snapshot:
        """Return the snapshot from which tests are forked. Takes many minutes if it has to be made."""
        if self._ready is None:
            self._home.root.parent.mkdir(parents=True, exist_ok=True)
            self._home.create()
            hv = bough.connect(self._home.root)
            self._ready = self._kept(hv, f"ready-{_VERSION}", _key_of_ready(), lambda: self._make_ready(hv))
        return self._ready

    def close(self) -> None:
        """End the service of the outer machine's home, unless another run uses it."""
        if self._home.api_socket.exists():
            hv = bough.connect(self._home.root)
            if not hv.machines():
                hv.shutdown()

    def _kept(
        self, hv: bough.Hypervisor, stem: str, key: str, make: Callable[[], bough.Machine]
    ) -> bough.Snapshot:
        """Return the snapshot with that key, made now if it is missing. Older ones are deleted."""
        label = f"{stem}-{key}"
        try:
            return hv.snapshot(label)
        except NotFound:
            pass
        machine = make()
        try:
            self._say(f"taking the snapshot {label}")
            taken = machine.snapshot(label)
        finally:
            machine.discard()
        for old in hv.snapshots():
            if (old.info().label or "").startswith(f"{stem}-") and old.info().label != label:
                old.delete()
        return taken

    def _make_ready(self, hv: bough.Hypervisor) -> bough.Machine:
        base = self._kept(hv, f"base-{_VERSION}", _key_of_base(), lambda: self._make_base(hv))
        machine = base.fork("ready")
        try:
            with tempfile.TemporaryDirectory(prefix="bough-kvm-") as work:
                self._say("building the wheel and the small guest")
                _install(Path(work) / "bough", ["--no-deps", str(ROOT)])
                build_small_guest(self._image_disk(), Path(work) / "small")
                self._push(machine, Path(work) / "bough", "/opt/packages")
                self._push(machine, Path(work) / "small", "/opt/small")
            machine.write_file("/usr/bin/bough", _COMMAND, mode=0o755)
            self.push_tests(machine)
            for user in USERS:
                self._say(f"preparing the home of {user}: probes, the small guest's first boot")
                self._prepare_home(machine, user)
        except BaseException:
            machine.discard()
            raise
        return machine

    def _prepare_home(self, machine: bough.Machine, user: str) -> None:
        where: dict[str, Any] = {"user": user, "cwd": f"{PLACE}/{user}/checkout", "env": environment_of(user)}
        done = machine.exec("python3", "-m", "tests.kvm.prepare", **where, timeout=_STEP_S)
        for line in done.stdout.splitlines():
            self._say(line)
        if not done.ok:
            raise AssertionError(f"the home of {user} could not be prepared:\n{done.stderr}")

    def _make_base(self, hv: bough.Hypervisor) -> bough.Machine:
        self._say("building the images")
        with self._images.alone():
            self._images.give(self._home, IMAGE)
        hv.build_image(IMAGE)
        recipe = tomllib.loads(_RECIPE.read_text()) | {"base": _BASE, "label": f"kvm-outer-{_VERSION}"}
        hv.build_recipe(recipe, label=recipe["label"])
        self._say("booting the outer machine")
        machine = hv.create(recipe["label"], name="outer", **_HARDWARE)
        try:
            machine.start(until="booted")
            with tempfile.TemporaryDirectory(prefix="bough-kvm-") as work:
                self._say("copying packages and Debian's image")
                _install(Path(work), ["--only-binary=:all:", *_platform_options(), *_requirements()])
                self._push(machine, Path(work), "/opt/packages")
            for user in USERS:
                machine.shell(_MAKE_HOME.format(user=user, place=PLACE), check=True)
            self._push(machine, self._image_disk().parent, f"{PLACE}/dev/home/images/{self._digest()}")
            machine.shell(_SHARE_IMAGE.format(place=PLACE, digest=self._digest()), check=True)
        except BaseException:
            machine.discard()
            raise
        return machine

    def _push(self, machine: bough.Machine, source: Path, target: str) -> None:
        """Copy a directory into the machine. Holes stay holes."""
        machine.exec("mkdir", "-p", target, check=True)
        pack = subprocess.Popen(["tar", "-cSf", "-", "-C", source, "."], stdout=subprocess.PIPE)
        unpack = [sys.executable, "-m", "bough", "exec", machine.name, "--", "tar", "-xSf", "-", "-C", target]
        environment = os.environ | {"BOUGH_HOME": str(self._home.root)}
        subprocess.run(unpack, stdin=pack.stdout, env=environment, check=True, timeout=_STEP_S)
        assert pack.wait() == 0

    def _digest(self) -> str:
        hv = bough.connect(self._home.root)
        return next(image.digest for image in hv.images() if IMAGE in image.labels)

    def _image_disk(self) -> Path:
        return self._home.image(self._digest()).disk


#: World-readable except for the homes: a jailed QEMU of root's has a user of its own.
_MAKE_HOME = """
mkdir -p -m 0711 {place}/{user}/home/images {place}/{user}/checkout
mkdir -p -m 0700 /run/nest-{user}
chown -R {user}: {place}/{user} /run/nest-{user}
echo /opt/packages > /usr/lib/python3/dist-packages/nest.pth
"""
_SHARE_IMAGE = """
chown -R dev: {place}/dev/home
cp --archive --link {place}/dev/home/images/{digest} {place}/root/home/images/
"""


def environment_of(user: str) -> dict[str, str]:
    """Return the environment of a user of the outer machine."""
    home, runtime = f"{PLACE}/{user}/home", f"/run/nest-{user}"
    return {
        "BOUGH_HOME": home,
        "BOUGH_TEST_HOME": home,
        "XDG_RUNTIME_DIR": runtime,
        "HOME": f"{PLACE}/{user}",
    }


def _install(target: Path, words: list[str]) -> None:
    """Unpack wheels into a directory."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
    subprocess.run([*pip, *words], check=True, stderr=subprocess.DEVNULL)


def _platform_options() -> list[str]:
    named = [word for name in _PLATFORMS for word in ("--platform", name)]
    return ["--python-version", _PYTHON, "--implementation", "cp", *named]


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *_TEST_PACKAGES]


def _key_of_base() -> str:
    return _digest_of(
        [_RECIPE.read_bytes(), str((_BASE, _HARDWARE, _requirements(), _MAKE_HOME, _SHARE_IMAGE)).encode()]
    )


def _key_of_ready() -> str:
    files = [path for path in sorted((ROOT / "src").rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    own = [HERE / name for name in ("small_guest.py", "prepare.py")]
    contents = (
        part for path in (*files, *own) for part in (str(path.relative_to(ROOT)).encode(), path.read_bytes())
    )
    return _digest_of([_key_of_base().encode(), *contents])


def _digest_of(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()[:12]


def outer_home(run: Path) -> Home:
    """Return the home of the outer machine: kept in BOUGH_TEST_CACHE, or below the run's directory."""
    cache = os.environ.get("BOUGH_TEST_CACHE")
    place = Path(cache) / "kvm" if cache else run / "kvm"
    place.mkdir(mode=0o711, parents=True, exist_ok=True)
    return Home.at(place / "home")


def is_possible() -> str | None:
    """Return why this host cannot run the outer machine; None: it can."""
    missing = [name for name in ("qemu-system-x86_64", "mmdebstrap", "debugfs") if not shutil.which(name)]
    return f"not installed: {', '.join(missing)}" if missing else None

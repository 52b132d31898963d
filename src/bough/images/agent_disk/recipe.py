"""What an agent disk is made from, as data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bough.errors import HostLacks
from bough.guest.agent import AGENT_VERSION
from bough.guest.install import agent_modules
from bough.images.packages.scripts import SCRIPTS, read_scripts
from bough.images.platforms import PLATFORMS

INSIDE = Path(__file__).parent / "inside"
#: An agent disk lies in the page cache of each of its guests.
MOST_BYTES = 8 << 20
#: Links to busybox. The guest's own programs go first.
TOOLS = (
    *(
        "[",
        "awk",
        "basename",
        "cat",
        "chgrp",
        "chmod",
        "chown",
        "cmp",
        "cp",
        "cut",
        "date",
        "dd",
        "df",
        "dirname",
    ),
    *("dmesg", "du", "echo", "env", "expr", "false", "find", "free", "grep", "gunzip", "gzip", "head"),
    *("hostname", "id", "ifconfig", "ip", "kill", "less", "ln", "ls", "mkdir", "mknod", "mktemp", "modprobe"),
    *("mount", "mv", "nc", "netstat", "nproc", "od", "ping", "poweroff", "printf", "ps", "pwd", "readlink"),
    *("reboot", "rm", "rmdir", "route", "sed", "seq", "setsid", "sh", "sleep", "sort", "stat", "stty", "su"),
    *(
        "sync",
        "tail",
        "tar",
        "tee",
        "test",
        "timeout",
        "top",
        "touch",
        "tr",
        "true",
        "tty",
        "udhcpc",
        "umount",
    ),
    *("uname", "uniq", "uptime", "vi", "wc", "wget", "which", "whoami", "xargs"),
)
#: Modules of Python's library in addition to the modules that the agent names.
MODULES = (
    *("base64", "contextlib", "datetime", "hashlib", "json", "marshal", "pathlib", "random", "re"),
    *("resource", "shutil", "signal", "socket", "subprocess", "tarfile", "tempfile", "threading"),
    *("traceback", "typing", "zlib"),
)


@dataclass(frozen=True)
class AgentDiskRecipe:
    """The ingredients of the agent disk of one architecture.

    Attributes:
        arch: as `uname -m` says.
        debian: Debian's name of the architecture.
        suite: Debian's release.
        python: version of Python in that release: "3.11".
        packages: Debian's packages, without their dependencies: only parts of a package are used. The build
            fails if a needed library is missing.
    """

    arch: str
    debian: str
    suite: str
    python: str
    packages: tuple[str, ...]
    tools: tuple[str, ...] = TOOLS
    modules: tuple[str, ...] = MODULES

    @property
    def python_packages(self) -> tuple[str, ...]:
        """The packages of a Python that compiles the modules."""
        return tuple(name for name in self.packages if name not in _PROGRAMS)

    def key(self) -> str:
        """Return the digest of all ingredients, except for the versions of packages."""
        digest = hashlib.sha256(json.dumps([AGENT_VERSION, asdict(self)], sort_keys=True).encode())
        digest.update(read_scripts(SCRIPTS, INSIDE))
        for name, content in sorted(agent_modules().items()):
            digest.update(name.encode() + b"\0" + content + b"\0")
        return digest.hexdigest()


_PROGRAMS = ("busybox-static", "sshfs", "openssh-sftp-server", "tar")


def _packages(python: str, *libraries: str) -> tuple[str, ...]:
    return (
        *_PROGRAMS,
        *(f"python{python}-minimal", f"libpython{python}-minimal", f"libpython{python}-stdlib"),
        *("libc6", "zlib1g", "libexpat1", "libffi8", "libpcre2-8-0", "libselinux1", "libacl1", *libraries),
    )


_BOOKWORM = ("bookworm", "3.11", _packages("3.11", "libfuse3-3", "libglib2.0-0"))
_TRIXIE = ("trixie", "3.13", _packages("3.13", "libfuse3-4", "libglib2.0-0t64", "libatomic1"))
#: Debian 12 has no riscv64. Later releases need newer 32-bit processors than machines may have.
_SUITES = {"x86_64": _BOOKWORM, "aarch64": _BOOKWORM, "i386": _BOOKWORM, "riscv64": _TRIXIE}


def agent_disk_recipe(arch: str) -> AgentDiskRecipe:
    """Return the recipe for an architecture.

    Raises:
        HostLacks: bough has no agent disk for it.
    """
    if arch not in _SUITES:
        raise HostLacks(
            f"there is no agent disk for {arch[:40]!r}",
            hint=f"bough has one for {', '.join(_SUITES)}; without the agent: --no-agent at the import",
        )
    suite, python, packages = _SUITES[arch]
    return AgentDiskRecipe(arch, PLATFORMS[arch].debian, suite, python, packages)

"""A guest's claims about itself, made safe to keep and to print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_TEXT = 4000


def clean_text(value: object, limit: int = MAX_TEXT) -> str:
    """Remove all control characters of terminals from a guest's text. Cut the text to `limit` characters."""
    text = value if isinstance(value, str) else ""
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text[:limit]
    )


def clean_name(value: object) -> str:
    """Clean text as clean_text does, for a single line."""
    return clean_text(value, 255).replace("\n", " ").replace("\t", " ")


@dataclass(frozen=True)
class AgentFacts:
    """Facts from the agent's answer to a hello. Each is only the guest's claim.

    Attributes:
        boot_id: changes with each boot of the guest's kernel; a fork keeps its parent's.
        os_release: ID, VERSION_ID, VERSION_CODENAME and PRETTY_NAME, as far as present.
        uptime_s: uptime of the guest's kernel.
        init: the guest's process 1: systemd, openrc-init, sysvinit, busybox, runit, s6, dinit or unknown;
            empty: an agent of an older bough.
        own_programs: the agent runs from the agent disk.
    """

    agent_version: str
    boot_id: str
    hostname: str
    kernel: str
    machine: str
    os_release: Mapping[str, str] = field(default_factory=dict)
    first_boot_done: bool = False
    uptime_s: float = 0.0
    init: str = ""
    own_programs: bool = False

    @classmethod
    def from_guest(cls, values: Mapping[str, object]) -> AgentFacts:
        release = values.get("os_release")
        uptime = values.get("uptime_s")
        names = ("ID", "VERSION_ID", "VERSION_CODENAME", "PRETTY_NAME")
        return cls(
            agent_version=clean_name(values.get("agent_version")),
            boot_id=clean_name(values.get("boot_id")),
            hostname=clean_name(values.get("hostname")),
            kernel=clean_name(values.get("kernel")),
            machine=clean_name(values.get("machine")),
            os_release={
                name: clean_name(release[name])
                for name in names
                if isinstance(release, dict) and name in release
            },
            first_boot_done=values.get("first_boot_done") is True,
            uptime_s=uptime if isinstance(uptime, float) and 0 <= uptime < 1e12 else 0.0,
            init=clean_name(values.get("init")),
            own_programs=values.get("own_programs") is True,
        )

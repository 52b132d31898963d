"""The settings that a machine has only in a project, and the settings of a network.

Pure, and quick to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ProjectSetting:
    """Attributes:
    text: a sentence for users, without a full stop.
    example: TOML of the value; for a table, its lines.
    is_table: the example is the content of a table.
    """

    text: str
    example: str
    is_table: bool = False


#: Settings of [machines.NAME], beside the settings of every machine (spec/settings.py).
MACHINE_SETTINGS: Mapping[str, ProjectSetting] = {
    "extends": ProjectSetting(
        "shared parts or machines, whose settings the machine takes over: names, or tables "
        '`{ file = "base.toml", machine = "server" }` for other files',
        '["base"]',
    ),
    "build": ProjectSetting(
        "a recipe from which the image is built: a file, or a table of the recipe's settings", '"web.toml"'
    ),
    "lock": ProjectSetting(
        "with `build`: use the package versions in this file, which `bough image lock` has written",
        '"web.lock"',
    ),
    "networks": ProjectSetting(
        "networks that the machine is on: a list of names, or a table of names with aliases, ipv4, mac and "
        "model; default: the network 'default'",
        '["back"]',
    ),
    "depends_on": ProjectSetting(
        "machines that start first: a list, or a table of names and conditions "
        "('started', 'healthy', 'completed')",
        '{ db = "healthy" }',
    ),
    "profiles": ProjectSetting(
        "the machine runs only if one of these profiles is requested: `--profile debug`", '["debug"]'
    ),
    "scale": ProjectSetting("number of equal machines: 2 gives web-1 and web-2", "2"),
    "working_dir": ProjectSetting("Compose's word for `workdir`", '"/srv"'),
    "healthcheck": ProjectSetting(
        "when the machine counts as healthy: one of test, port, http, unit, file and log", "", is_table=True
    ),
}

#: Settings of [machines.NAME.healthcheck]. The first six are the kinds.
HEALTH_SETTINGS: Mapping[str, ProjectSetting] = {
    "port": ProjectSetting("a TCP port at which a program of the guest listens", "5432"),
    "test": ProjectSetting(
        "a command that succeeds: a text for the shell, or a list of words", '"pg_isready -q"'
    ),
    "http": ProjectSetting(
        "an address that answers the guest with a status from 200 to 399", '"http://localhost:8080/health"'
    ),
    "unit": ProjectSetting(
        "a unit of systemd that is active, or a one-shot that has succeeded", '"postgresql.service"'
    ),
    "file": ProjectSetting("a file or directory that exists", '"/run/ready"'),
    "log": ProjectSetting(
        "an extended regular expression that a line of the journal matches; a table may name unit or file",
        '{ pattern = "ready to accept", unit = "postgresql" }',
    ),
    "interval": ProjectSetting("pause between two checks; default: 5s", '"5s"'),
    "timeout": ProjectSetting("longest time of one check, in whole seconds; default: 30s", '"30s"'),
    "retries": ProjectSetting("failures in a row that make the machine unhealthy; default: 3", "3"),
    "start_period": ProjectSetting(
        "time from the machine's first answer in which failures do not count; default: 2m", '"2m"'
    ),
    "start_interval": ProjectSetting(
        "pause between two checks in the start period; default: 500ms", '"500ms"'
    ),
}

#: Settings of [networks.NAME].
NETWORK_SETTINGS: Mapping[str, ProjectSetting] = {
    "subnet": ProjectSetting("an IPv4 network; default: a /24 that derives from the names", '"10.1.0.0/24"'),
    "mtu": ProjectSetting("bytes of a frame's payload, 576 to 65520; default: 1500", "1500"),
    "internal": ProjectSetting(
        "false: machines without a card on the uplink reach the outside through this network; default: true",
        "false",
    ),
}

#: Tables and settings at the top of the file.
TOP_SETTINGS: Mapping[str, ProjectSetting] = {
    "name": ProjectSetting("name of the project; default: the name of the file's directory", '"shop"'),
    "machines": ProjectSetting("the machines, one table each", "", is_table=True),
    "networks": ProjectSetting("the networks between machines, one table each", "", is_table=True),
    "shared": ProjectSetting("settings that machines share by `extends`, one table each", "", is_table=True),
}

#: Words of other programs for settings of a machine in a project.
OTHER_NAMES = {
    "network": "networks",
    "net": "networks",
    "health_check": "healthcheck",
    "health": "healthcheck",
    "replicas": "scale",
    "deploy": "scale",
    "count": "scale",
    "depends": "depends_on",
    "requires": "depends_on",
    "after": "depends_on",
    "dockerfile": "build",
    "recipe": "build",
    "profile": "profiles",
    "template": "extends",
}

#: Settings of other programs that have no setting here -> what to do instead.
INSTEAD = {
    "name": "the name of the table is the machine's name: [machines.NAME]",
    "container_name": "the name of the table is the machine's name: [machines.NAME]",
    "env_file": "write the values into .env beside the file, and ${NAME} in environment",
    "volumes": "use disks for data of the machine, mounts for directories of the host",
}

"""The NoCloud seed that configures a guest with cloud-init at its first boot.

The seed is an ISO 9660 called "cidata" with four texts (cloud-init's documentation, "NoCloud").

user-data is the user's text, unchanged. vendor-data installs bough's agent by a boot hook. The hook runs
before the network is up, whatever the user-data says. `vendor_data: {enabled: false}` in the user-data
disables the hook.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from bough.guest.install import ENABLED_AS, LIBRARY, UNIT_PATH, agent_files

NO_USER_DATA = "#cloud-config\n{}\n"
MOST_USER_DATA = 512 * 1024
_HOOK = """#cloud-boothook
#!/bin/sh
# The guest agent of bough. It is put in place once; where there is no systemd, it is started at each boot.
library={library} wanted={digest}
if [ "$(cat $library/.seed 2>/dev/null)" != $wanted ]; then
    rm -rf $library
    base64 -d <<'END' | tar -xzf - -C / && echo $wanted > $library/.seed
{payload}
END
fi
if [ -d /run/systemd/system ]; then
    [ -L {link} ] && exit 0
    mkdir -p "$(dirname {link})"
    ln -s {unit} {link}
    systemctl daemon-reload
    systemctl --no-block start bough-agent.service
elif ! pgrep -f 'import main; main' >/dev/null 2>&1; then
    setsid python3 -I -S -c "import sys; sys.path.insert(0, '$library'); \\
from bough.guest.agent import main; main([])" </dev/null >/dev/null 2>&1 &
fi
exit 0
"""


def render_meta_data(machine_id: str, hostname: str, ssh_keys: Sequence[str]) -> str:
    """Return the meta-data as JSON, which is also YAML.

    The instance id contains the machine's id, so that cloud-init runs once in each machine.
    """
    keys = {"public-keys": list(ssh_keys)} if ssh_keys else {}
    return json.dumps({"instance-id": f"bough-{machine_id}", "local-hostname": hostname, **keys}, indent=1)


def render_network(mac_addresses: Sequence[str]) -> str:
    """Return the network configuration: DHCP on each card. The first card is called "uplink" in the
    configuration.
    """
    if not mac_addresses:
        return json.dumps({"version": 2, "ethernets": {}})
    cards = {
        f"nic{number}" if number else "uplink": {
            "match": {"macaddress": mac},
            "dhcp4": True,
            "dhcp6": True,
            "optional": True,
        }
        for number, mac in enumerate(mac_addresses)
    }
    return json.dumps({"version": 2, "ethernets": cards}, indent=1)


def render_agent_hook() -> str:
    payload = _pack_agent()
    return _HOOK.format(
        library=LIBRARY,
        digest=hashlib.sha256(payload).hexdigest()[:32],
        payload=base64.encodebytes(payload).decode().strip(),
        link=ENABLED_AS,
        unit=UNIT_PATH,
    )


def _pack_agent() -> bytes:
    """Return an archive of the agent's files. The same files give the same bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for file in agent_files():
            info = tarfile.TarInfo(file.path.lstrip("/"))
            info.size, info.mode = len(file.content), file.mode
            archive.addfile(info, io.BytesIO(file.content))
    import gzip

    return gzip.compress(packed.getvalue(), mtime=0)


def write_seed(path: Path, texts: dict[str, str]) -> None:
    """Write the ISO. `texts` has the names "meta-data", "user-data", "vendor-data", "network-config"."""
    import pycdlib  # imported here: it takes 30 ms, and few machines have a seed

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, text) in enumerate(texts.items()):
        data = text.encode()
        plain = f"/{name.replace('-', '_').upper()[:8]}{number}.;1"
        iso.add_fp(io.BytesIO(data), len(data), plain, rr_name=name, joliet_path=f"/{name}")
    iso.write(str(path))
    iso.close()
    path.chmod(0o600)

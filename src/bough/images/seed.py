"""What a guest with cloud-init is told at its first boot: a NoCloud seed (cloud-init's documentation,
"NoCloud"), an ISO 9660 called "cidata" with four texts in it.

user-data is the user's, as it is. Our agent comes by vendor-data, as a boot hook: that runs early, before
the network is up, whatever the user-data says; `vendor_data: {enabled: false}` in it keeps the agent out.
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
    """JSON, which is YAML as well. The instance's id is the machine's: cloud-init runs once in each."""
    keys = {"public-keys": list(ssh_keys)} if ssh_keys else {}
    return json.dumps({"instance-id": f"bough-{machine_id}", "local-hostname": hostname, **keys}, indent=1)


def render_network(mac: str | None) -> str:
    """Addresses by DHCP on the uplink; nothing where there is none."""
    if mac is None:
        return json.dumps({"version": 2, "ethernets": {}})
    card = {"match": {"macaddress": mac}, "dhcp4": True, "dhcp6": True, "optional": True}
    return json.dumps({"version": 2, "ethernets": {"uplink": card}}, indent=1)


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
    """The agent's files, always the same bytes for the same files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for file in agent_files():
            info = tarfile.TarInfo(file.path.lstrip("/"))
            info.size, info.mode = len(file.content), file.mode
            archive.addfile(info, io.BytesIO(file.content))
    import gzip

    return gzip.compress(packed.getvalue(), mtime=0)


def write_seed(path: Path, texts: dict[str, str]) -> None:
    """The ISO, with `texts` by their names: "meta-data", "user-data", "vendor-data", "network-config"."""
    import pycdlib  # 30 ms, and few machines have one

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, text) in enumerate(texts.items()):
        data = text.encode()
        plain = f"/{name.replace('-', '_').upper()[:8]}{number}.;1"
        iso.add_fp(io.BytesIO(data), len(data), plain, rr_name=name, joliet_path=f"/{name}")
    iso.write(str(path))
    iso.close()
    path.chmod(0o600)

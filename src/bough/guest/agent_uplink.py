"""An address for the card of the uplink, in a guest whose own init has set none.

The guest's programs come first: the agent waits for the end of the boot, and leaves a card alone that has an
address, belongs to a bridge, or has a program that may still configure it. Otherwise busybox's DHCP client
of the agent disk runs until the guest stops.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH103, PTH123, PTH208

from __future__ import annotations

import os
import time

from bough.guest import agent_init, agent_python, agent_resolver, agent_rtnetlink
from bough.guest.agent_identity import write_file

#: Directories for the script of the DHCP client. Programs of /run may be forbidden (noexec).
_SCRIPT_PLACES = ("/run/bough", "/var/lib/bough", "/tmp")
_NO_PROGRAMS = 8  # ST_NOEXEC
_PID_FILE = "/run/bough/dhcp-{}.pid"
_LONGEST_BOOT_S = 180.0
#: Uptime at which the boot counts as over if the init does not tell.
_UNKNOWN_BOOT_S = 45.0
_LOOK_AGAIN_S = 0.5
_SIGUSR1 = 10
_CONFIGURING = frozenset(
    (
        *("dhclient", "dhcpcd", "udhcpc", "NetworkManager", "systemd-network", "connmand", "wickedd"),
        *("wickedd-dhcp4", "iwd"),
    )
)
_DHCP_SCRIPT = """\
#!{busybox} sh
# Written by bough's agent. busybox's DHCP client runs this script.
b={busybox}
case $1 in
  deconfig) $b ip link set dev "$interface" up ;;
  bound|renew)
    $b ip -4 addr add "$ip/${{mask:-24}}" ${{broadcast:+broadcast "$broadcast"}} dev "$interface" 2>/dev/null
    [ -z "$mtu" ] || $b ip link set dev "$interface" mtu "$mtu"
    for gateway in $router; do
      $b ip -4 route add "$gateway" dev "$interface" 2>/dev/null
      $b ip -4 route replace default via "$gateway" dev "$interface"
      break
    done
    [ ! -e {owned} ] || exit 0
    lines=$($b cat {own} 2>/dev/null)
    {{
      [ -z "$lines" ] || echo "$lines"
      [ -z "$domain" ] || case $lines in *search*) ;; *) echo "search $domain" ;; esac
      for server in $dns; do echo "nameserver $server"; done
    }} >{resolv_conf}
    ;;
esac
"""
_OWNED = "/run/bough/resolver-is-owned"


def is_online() -> bool:
    """Return whether the guest has an address, or no card at all."""
    return agent_rtnetlink.has_any_address() or len(os.listdir("/sys/class/net")) < 2


def finish_network(macs: list[str]) -> None:
    """Wait for the end of the boot. Then put our name servers first, and give addresses to cards without.

    Runs in a child of the agent.
    """
    wait_for_boot()
    agent_resolver.apply_lines()
    for card in cards_without_address(macs):
        start_dhcp(card)


def cards_without_address(macs: list[str]) -> list[str]:
    """Return the cards that nothing in the guest configures."""
    cards = [card for card in map(agent_rtnetlink.find_card, macs) if card is not None]
    return [card for card in cards if needs_address(card)]


def wait_for_boot() -> None:
    """Wait until the init has set up the network, as far as the init's state is known."""
    end = time.monotonic() + _LONGEST_BOOT_S
    while not is_boot_over() and time.monotonic() < end:
        time.sleep(_LOOK_AGAIN_S)


def is_boot_over() -> bool:
    state = agent_init.find_state()
    if state == agent_init.UNKNOWN:
        return time.clock_gettime(time.CLOCK_BOOTTIME) > _UNKNOWN_BOOT_S
    return state != agent_init.STARTING


def needs_address(card: str) -> bool:
    if any(len(packed) == 4 for packed, _ in agent_rtnetlink.addresses_of(card)):
        return False
    return not agent_rtnetlink.is_port(card) and not _configures()


def _configures() -> bool:
    """Return whether a program runs that configures cards."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/comm", "rb", buffering=0) as file:
                    if file.read(64).decode("ascii", "replace").strip() in _CONFIGURING:
                        return True
            except OSError:
                continue  # the process has just ended
    return False


def start_dhcp(card: str) -> None:
    """Start the DHCP client in the background. Without an agent disk there is none."""
    if not agent_python.BUSYBOX:
        return
    from bough.guest.agent_calls import run

    if _renews(card):
        return
    agent_rtnetlink.bring_up(card)
    script = _write_script()
    if agent_resolver.is_owned():
        write_file(_OWNED, b"")
    options = ["-i", card, "-s", script, "-p", _PID_FILE.format(card), "-b", "-t", "5", "-T", "2"]
    run([agent_python.BUSYBOX, "udhcpc", *options])


def _renews(card: str) -> bool:
    """Have a client that runs already ask again, such as the parent's in a fork. Return whether one runs."""
    try:
        with open(_PID_FILE.format(card), "rb", buffering=0) as file:
            pid = int(file.read(20))
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            if b"udhcpc" not in file.read(4096):
                return False
        os.kill(pid, _SIGUSR1)
    except (OSError, ValueError):
        return False  # no client, or it has ended
    return True


def _write_script() -> str:
    """Write the client's script where the kernel executes it. Return the path."""
    content = render_script(agent_python.BUSYBOX).encode()
    failure: OSError | None = None
    for place in _SCRIPT_PLACES:
        try:
            os.makedirs(place, exist_ok=True)
            if os.statvfs(place).f_flag & _NO_PROGRAMS:
                continue
            write_file(place + "/dhcp.sh", content, mode=0o700)
            return place + "/dhcp.sh"
        except OSError as error:
            failure = error  # a read-only root
    raise failure or OSError(13, "no directory may contain programs")


def render_script(busybox: str) -> str:
    """Return the script that sets the address of a lease."""
    names = {"owned": _OWNED, "own": agent_resolver.OWN_LINES, "resolv_conf": agent_resolver.RESOLV_CONF}
    return _DHCP_SCRIPT.format(busybox=busybox, **names)

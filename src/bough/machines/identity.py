"""Give an identity to a guest that continued from a snapshot.

A fork begins with the parent's identity. A ready fork has a new host name, machine-id, ssh host keys, MAC
address and randomness, and the right time. Changes of disk and network follow right after.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from bough.errors import BoughError, GuestRefused
from bough.guest.channel import AgentChannel
from bough.guest.facts import clean_name
from bough.machines.clock import guest_time_ns, set_clock
from bough.machines.record import MachineRecord

_CALL_TIMEOUT_S = 60.0
#: For the answer to the request that was sent with the hello, once the hello is answered.
_ANSWER_TIMEOUT_S = 10.0
#: The time in the request is late by the way to the guest. The clock is set again after a longer round trip.
_CLOCK_ERROR_S = 0.08
_MOST_FAILED = 16


async def prepare_guest(channel: AgentChannel) -> None:
    """Have the agent load code for the first work of forks, so that the forks need not load the code."""
    await channel.call("prepare", {}, timeout_s=10, exact=True)


#: Name of the agent's operation.
BECOME = "become"


def render_identity(record: MachineRecord) -> dict[str, Any]:
    """Return the arguments of BECOME for the guest's identity. Valid for one request, to be sent at once."""
    arguments: dict[str, Any] = {"entropy": os.urandom(64)}
    if record.identity == "new":
        arguments |= {
            "hostname": record.hostname,
            "machine_id": record.hardware.uuid.replace("-", ""),
            "host_keys": make_host_keys(),
        }
        arguments |= _render_mac_changes(record)
    return {**arguments, "unix_ns": guest_time_ns(record)}


def _render_mac_changes(record: MachineRecord) -> dict[str, Any]:
    """Return the arguments for new addresses of network cards: "macs" is a list of old and new addresses.

    "mac_from" and "mac" are the first card's, for agents in images of earlier versions.
    """
    # put_back keeps the cards of the machine. Without old addresses the guest booted with the machine's own.
    pairs = zip(record.macs_before, record.hardware.mac_addresses, strict=False)
    changes = [[before, now] for before, now in pairs if before != now]
    if not changes:
        return {}
    return {"mac_from": changes[0][0], "mac": changes[0][1], "macs": changes}


@dataclass(frozen=True)
class Taken:
    """The guest's report on its new identity.

    Attributes:
        failed: the parts that the guest could not set, and why: untrusted text, made safe to print.
        volatile: some parts last only until the next boot, because the guest's disk is read-only.
    """

    failed: tuple[str, ...] = ()
    volatile: bool = False

    @classmethod
    def from_guest(cls, values: dict[str, Any]) -> Taken:
        failed = values.get("failed")
        told = failed if isinstance(failed, list) else []
        return cls(tuple(clean_name(item) for item in told[:_MOST_FAILED]), values.get("volatile") is True)


async def give_identity(
    channel: AgentChannel, record: MachineRecord, *, told_at: float | None = None
) -> Taken:
    """Send the guest the missing parts of an identity, by `record.identity`.

    Args:
        told_at: when (time.monotonic) the identity was sent with the hello; then only wait for the answer.

    Raises:
        GuestRefused: the guest could not set it.
        AgentUnavailable: the agent stopped answering in the middle; call again when it answers.
    """
    done = None if told_at is None else await channel.first_answer(_ANSWER_TIMEOUT_S)
    if done is None:
        done = await _become(channel, record, render_identity(record))
    else:
        assert told_at is not None
        await _check_clock(channel, record, done, told_at)
    return Taken.from_guest(done)


async def give_name(channel: AgentChannel, record: MachineRecord, hostname: str) -> Taken:
    """Give a host name and the right time to a paused guest with an identity.

    Raises: as `give_identity`.
    """
    done = await _become(channel, record, {"hostname": hostname, "unix_ns": guest_time_ns(record)})
    return Taken.from_guest(done)


async def _become(channel: AgentChannel, record: MachineRecord, arguments: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    done = await channel.call(BECOME, arguments, timeout_s=_CALL_TIMEOUT_S)
    await _check_clock(channel, record, done, started)
    return done


async def _check_clock(
    channel: AgentChannel, record: MachineRecord, done: dict[str, Any], told_at: float
) -> None:
    took = done.get("took_ns")
    way_s = time.monotonic() - told_at - (took / 1e9 if isinstance(took, int) and took > 0 else 0)
    if way_s >= _CLOCK_ERROR_S:
        await set_clock(channel, record)


async def settle_identity(channel: AgentChannel, record: MachineRecord) -> None:
    """Have the guest write the identity to disk, and renew its lease and sshd. Takes the guest a while."""
    await channel.call("settle", _render_mac_changes(record), timeout_s=_CALL_TIMEOUT_S)


def make_host_keys() -> dict[str, list[str]]:
    """Return kind -> private and public key, in the format of ssh-keygen.

    The host makes the keys: an emulated guest needs a second, and has only just received new randomness.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    pairs: dict[str, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey] = {
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
        "ecdsa": ec.generate_private_key(ec.SECP256R1()),
    }
    keys = {}
    for kind, pair in pairs.items():
        private = pair.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = pair.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        keys[kind] = [private.decode(), public.decode() + " \n"]
    return keys


def explain(error: BoughError) -> str:
    doing = "refused" if isinstance(error, GuestRefused) else "did not accept"
    return f"the guest {doing} its new identity: {error.message}"


def explain_failed(taken: Taken) -> str | None:
    """Return the error text for the failed parts; None if no part failed."""
    if not taken.failed:
        return None
    return f"the guest kept a part of its parent's identity: {'; '.join(taken.failed)}"

"""Who a machine is, told to its guest after it went on from a snapshot.

A fork wakes up as its parent. Before it is called ready it has a host name, machine-id, host keys of ssh,
MAC address and randomness of its own, and the right time; what reaches the disk and the network is settled
right after.
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
#: For the answer to what went with the hello, once that is answered.
_ANSWER_TIMEOUT_S = 10.0
#: The time that was told is late by the way there; told again while there and back takes longer than this.
_CLOCK_ERROR_S = 0.08
_MOST_FAILED = 16


async def prepare_guest(channel: AgentChannel) -> None:
    """Have the agent load what a fork will need, so that not each fork has to."""
    await channel.call("prepare", {}, timeout_s=10, exact=True)


#: The operation of the agent.
BECOME = "become"


def render_identity(record: MachineRecord) -> dict[str, Any]:
    """What the guest is to be told; good for one telling, at once."""
    arguments: dict[str, Any] = {"entropy": os.urandom(64)}
    if record.identity == "new":
        arguments |= {
            "hostname": record.hostname,
            "machine_id": record.hardware.uuid.replace("-", ""),
            "host_keys": make_host_keys(),
        }
        if record.hardware.mac and record.mac_before:
            arguments |= {"mac_from": record.mac_before, "mac": record.hardware.mac}
    return {**arguments, "unix_ns": guest_time_ns(record)}


@dataclass(frozen=True)
class Taken:
    """How far a guest took its identity.

    Attributes:
        failed: what it could not set, and why: the guest's words, made safe to print.
        volatile: some of it is set until the guest's next boot only, as its disk is read-only.
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
    """Tell the guest what `record.identity` says it does not know yet.

    Args:
        told_at: when (time.monotonic) it was told with the hello; then only its answer is waited for.

    Raises:
        GuestRefused: it could not do it.
        AgentUnavailable: it went away in the middle; call again when it answers.
    """
    done = None if told_at is None else await channel.first_answer(_ANSWER_TIMEOUT_S)
    if done is None:
        done = await _become(channel, record, render_identity(record))
    else:
        assert told_at is not None
        await _check_clock(channel, record, done, told_at)
    return Taken.from_guest(done)


async def give_name(channel: AgentChannel, record: MachineRecord, hostname: str) -> Taken:
    """Tell a guest that has its identity, and has stood still since, a host name and the right time.

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
    """Have it written to the guest's disk, and its lease and sshd renewed. Takes the guest a while."""
    card: dict[str, Any] = {}
    if record.hardware.mac and record.mac_before and record.mac_before != record.hardware.mac:
        card = {"mac_from": record.mac_before, "mac": record.hardware.mac}
    await channel.call("settle", card, timeout_s=_CALL_TIMEOUT_S)


def make_host_keys() -> dict[str, list[str]]:
    """kind -> private and public key, as ssh-keygen writes them.

    Made here: it takes an emulated guest, which has just become as random as its parent, a second.
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
    doing = "refused" if isinstance(error, GuestRefused) else "did not take"
    return f"the guest {doing} its new identity: {error.message}"


def explain_failed(taken: Taken) -> str | None:
    """None where the guest took all of it."""
    if not taken.failed:
        return None
    return f"the guest kept a part of its parent's identity: {'; '.join(taken.failed)}"

"""Saved states on KVM: snapshots with memory, forks, suspend, bundles, booted snapshots, clock, identity."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bough
from tests.acceptance.test_clock import HELD_S, is_right
from tests.kvm.patience import BOOT_S
from tests.waiting import wait_until

#: Two clocks that a program of the guest has read: an error is a step back.
_COUNT = """
import time
last = time.monotonic()
number = 0
while True:
    now = time.monotonic()
    assert now >= last, "the monotonic clock went back"
    last, number = now, number + 1
    with open("/run/count", "w") as file:
        file.write("%d\\n" % number)
    time.sleep(0.05)
"""
#: Pages that the CPU writes; none of them is written by a device.
_FILL = "head -c {bytes} /dev/urandom > /dev/shm/{name}; sha256sum /dev/shm/{name}"


def begin_to_count(machine: bough.Machine) -> None:
    machine.exec("sh", "-c", "cat > /run/count.py", input=_COUNT, check=True)
    machine.shell("setsid python3 /run/count.py < /dev/null > /run/out 2>&1 &", check=True)
    wait_until(lambda: count(machine) > 1, timeout_s=300, what="the process counts", every_s=1)


def count(machine: bough.Machine) -> int:
    return int(machine.shell("cat /run/count 2>/dev/null || echo 0").stdout or 0)


def wait_goes_on(machine: bough.Machine, since: int) -> None:
    wait_until(lambda: count(machine) > since, timeout_s=300, what="the process goes on", every_s=1)
    assert machine.read_text("/run/out") == ""


def wait_right(machine: bough.Machine) -> None:
    wait_until(lambda: is_right(machine), timeout_s=300, what="the clock is right within 100 ms", every_s=1)


def fill(machine: bough.Machine, name: str, mib: int) -> str:
    return machine.shell(_FILL.format(bytes=mib << 20, name=name), check=True).stdout.split()[0]


def digest(machine: bough.Machine, name: str) -> str:
    return machine.exec("sha256sum", f"/dev/shm/{name}", check=True).stdout.split()[0]


def test_snapshot_restore_fork(fork: bough.Machine, gone: list[bough.Machine]) -> None:
    """Processes go on, and each written page is in the snapshot: also in a fork of a fork."""
    begin_to_count(fork)
    first = fill(fork, "first", 24)
    snapshot = fork.snapshot()
    print(f"pause {snapshot.info().pause_ms} ms")
    before = count(fork)
    second = fill(fork, "first", 8)
    assert second != first
    child = snapshot.fork("child")
    gone.append(child)
    wait_goes_on(child, 0)
    assert digest(child, "first") == first
    own = fill(child, "own", 8)
    grandchild = child.fork("grandchild")
    gone.append(grandchild)
    assert digest(grandchild, "first") == first
    assert digest(grandchild, "own") == own
    wait_goes_on(grandchild, 0)
    fork.restore(snapshot.id)
    assert digest(fork, "first") == first
    wait_goes_on(fork, 0)
    assert count(fork) < before + 10_000
    snapshot.delete()


#: Holds known values in the vector registers and a float in the x87 stack, until another process writes to
#: /run/go. Yields the processor meanwhile. Then compares.
_REGISTERS = """
import ctypes, math, mmap, os, struct
def move(opcode, register, base):  # movdqu between xmm and [base + 16 * register]
    rex = b"\\x44" if register > 7 else b""
    modrm = 0x80 | (register & 7) << 3 | base
    return b"\\xf3" + rex + bytes([0x0F, opcode, modrm]) + struct.pack("<i", 16 * register)
load = b"".join(move(0x6F, register, 7) for register in range(16))  # from rdi
store = b"".join(move(0x7F, register, 2) for register in range(16))  # to rdx
fldpi, fstp, ret = b"\\xd9\\xeb", b"\\xdd\\x9a" + struct.pack("<i", 256), b"\\xc3"
yield_until_go = bytes.fromhex("b8180000000f05833e0074f4")  # sched_yield until [rsi] is not 0
machine_code = load + fldpi + yield_until_go + store + fstp + ret
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(machine_code)
with open("/run/go", "w+b") as file:
    file.truncate(4)
    go = mmap.mmap(file.fileno(), 4)
given, found = (ctypes.c_char * 256).from_buffer_copy(os.urandom(256)), (ctypes.c_char * 264)()
call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
    ctypes.addressof(ctypes.c_char.from_buffer(code)))
open("/run/held", "w").close()
call(ctypes.addressof(given), ctypes.addressof(ctypes.c_char.from_buffer(go)), ctypes.addressof(found))
same = found.raw == given.raw + struct.pack("<d", math.pi)
with open("/run/registers", "w") as file:
    file.write("same" if same else "lost")
"""


def test_registers_of_a_process(fork: bough.Machine, gone: list[bough.Machine]) -> None:
    """Vector and floating-point registers (XSAVE) in a fork, after a restore, and after a resume."""
    fork.exec("sh", "-c", "cat > /run/registers.py", input=_REGISTERS, check=True)
    fork.shell("setsid python3 /run/registers.py < /dev/null > /run/out 2>&1 &", check=True)
    holds = "test -e /run/held || cat /run/out"
    wait_until(lambda: not fork.shell(holds).stdout, timeout_s=300, what="the registers are held", every_s=1)
    snapshot = fork.snapshot()
    child = snapshot.fork()
    gone.append(child)
    assert _registers(child) == "same"
    fork.restore(snapshot.id)
    fork.suspend()
    fork.resume()
    assert _registers(fork) == "same"
    snapshot.delete()


def _registers(machine: bough.Machine) -> str:
    machine.shell(r"printf '\1' | dd of=/run/go conv=notrunc 2>/dev/null", check=True)
    told = "cat /run/registers /run/out 2>/dev/null"
    wait_until(lambda: bool(machine.shell(told).stdout), timeout_s=300, what="they are compared", every_s=1)
    return machine.shell(told).stdout


_ON_EACH = """
import os, time
for cpu in sorted(os.sched_getaffinity(0)):
    os.sched_setaffinity(0, [cpu])
    before = time.monotonic()
    time.sleep(0.05)
    assert time.monotonic() > before
    print(cpu, end=" ")
"""


def test_two_vcpus(
    hv: bough.Hypervisor, small: str, hardware: dict[str, Any], gone: list[bough.Machine]
) -> None:
    """Both vCPUs, their timers and their clock go on in a fork and after a restore."""
    machine = hv.create(small, name="two", **hardware | {"vcpus": 2})
    gone.append(machine)
    machine.start(timeout=BOOT_S)
    begin_to_count(machine)
    snapshot = machine.snapshot()
    child = snapshot.fork("two-child")
    gone.append(child)
    machine.restore(snapshot.id)
    for each in (child, machine):
        assert each.exec("python3", "-c", _ON_EACH, check=True).stdout == "0 1 "
        wait_goes_on(each, count(each))
        wait_right(each)
    snapshot.delete()


def test_suspend_and_resume(fork: bough.Machine) -> None:
    begin_to_count(fork)
    content = fill(fork, "first", 8)
    fork.suspend()
    assert fork.state == "suspended"
    fork.resume()
    assert digest(fork, "first") == content
    wait_goes_on(fork, count(fork))
    wait_right(fork)


def test_a_bundle_there_and_back(
    hv: bough.Hypervisor, fork: bough.Machine, gone: list[bough.Machine], tmp_path: Path
) -> None:
    begin_to_count(fork)
    content = fill(fork, "first", 8)
    machine = fork
    for name in ("there", "back"):
        file = tmp_path / f"{name}.bough"
        machine.export(file)
        machine = hv.import_bundle(file, name=name, identity="new")
        gone.append(machine)
        assert machine.info().accelerator == "kvm"
        assert digest(machine, "first") == content
        wait_goes_on(machine, 0)
        wait_right(machine)


def test_run_and_standby_machines(hv: bough.Hypervisor, small: str, hardware: dict[str, Any]) -> None:
    """`run` boots once, and later runs fork the booted snapshot or take a standby machine."""
    for _ in range(2):
        with hv.run(small, timeout=BOOT_S, **hardware) as machine:
            assert machine.info().accelerator == "kvm"
            assert machine.exec("true").ok
    assert _running(hv) == []
    hv.keep_standby(small, 1, **hardware)
    wait_until(
        lambda: hv.standby_machines()[0]["ready"] == 1, timeout_s=600, what="a machine stands by", every_s=2
    )
    with hv.run(small, timeout=BOOT_S, **hardware) as machine:
        assert machine.exec("true").ok
        wait_right(machine)
    hv.keep_standby(small, 0, **hardware)


def _running(hv: bough.Hypervisor) -> list[str]:
    return [machine.name for machine in hv.machines() if machine.state == "running"]


def test_the_clock(fork: bough.Machine, gone: list[bough.Machine]) -> None:
    """Right within 100 ms after a pause, snapshots, a restore and in a fork, and never backwards."""
    begin_to_count(fork)
    wait_right(fork)
    fork.pause()
    time.sleep(HELD_S)  # the delay that bough must correct
    fork.resume()
    wait_right(fork)
    snapshot = fork.snapshot()
    wait_right(fork)
    time.sleep(HELD_S)
    child = snapshot.fork()
    gone.append(child)
    wait_right(child)
    wait_goes_on(child, 0)
    fork.restore(snapshot.id)
    wait_right(fork)
    wait_goes_on(fork, 0)


_FORKS = 20
_WHO_AM_I = """
cat /etc/machine-id /etc/hostname
head -c 16 /dev/urandom | od -An -tx1
python3 -c 'import os; print(os.getrandom(16).hex())'
cat /proc/sys/kernel/random/uuid
cat /sys/class/net/e*/address
"""


def test_forks_have_distinct_identities(booted: bough.Snapshot, gone: list[bough.Machine]) -> None:
    told: list[list[str]] = []
    for begin in range(0, _FORKS, 5):
        made = booted.fork(count=5)
        gone.extend(made)
        with ThreadPoolExecutor(2) as pool:
            for done in pool.map(lambda fork: fork.shell(_WHO_AM_I, check=True), made):
                machine_id, hostname, *rest = done.stdout.splitlines()
                told.append([machine_id, f"{hostname} of round {begin}", *rest])
        while gone:
            gone.pop().discard()
    assert len(told) == _FORKS
    for number, values in enumerate(zip(*told, strict=True)):
        assert all(values), number
        assert len(set(values)) == _FORKS, f"two forks share value {number}: {values}"
    assert len(told[0]) >= 6, "a guest has no network card"

"""The outer filter, run by a small interpreter of its instructions, and by the kernel itself."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import sys

import pytest

from bough.qemu.syscalls import _MACHINES, REFUSED, render_filter

ALLOW = 0x7FFF0000


def verdict(program: bytes, machine: int, number: int, argument: int = 0) -> int:
    data = struct.pack("=iIQ6Q", number, machine, 0, argument, 0, 0, 0, 0, 0)
    steps = list(struct.iter_unpack("=HBBI", program))
    at, value = 0, 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return int(operand)
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            at += yes if holds else no


@pytest.mark.parametrize("machine", _MACHINES)
def test_what_is_refused_and_what_is_not(machine: str) -> None:
    name, column, clone = _MACHINES[machine]
    program = render_filter(machine)
    assert program is not None
    refused = {row[column] for row in REFUSED.values()} - {None}
    for number in range(0, 470):
        expected = 0x50000 | errno.EPERM if number in refused else ALLOW
        expected = 0x50000 | errno.ENOSYS if number == 435 else expected
        assert verdict(program, name, number) == expected, number
    threads = 0x3D0F00  # flags of pthread_create
    assert verdict(program, name, clone, threads) == ALLOW
    for kind in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, name, clone, threads | kind) == 0x50000 | errno.EPERM
    assert verdict(program, 0x40000003, 1) == 0x50000 | errno.EPERM  # int 0x80
    assert verdict(program, name, 0x40000000 | 1) == 0x50000 | errno.ENOSYS  # x32


def test_numbers_are_told_once() -> None:
    for column in (0, 1):
        numbers = [row[column] for row in REFUSED.values() if row[column] is not None]
        assert len(numbers) == len(set(numbers))


def test_a_machine_that_is_not_known() -> None:
    assert render_filter("vax") is None


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
def test_the_kernel_takes_it() -> None:
    """Test in a separate process: a filter cannot be removed."""
    script = """
import ctypes, os, sys, threading
from bough.qemu.syscalls import render_filter
libc = ctypes.CDLL(None, use_errno=True)
program = render_filter()
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program))) == 0
for number in (101, 272, 310, 425):
    assert libc.syscall(number, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1, number
thread = threading.Thread(target=os.getpid); thread.start(); thread.join()
os.execv("/bin/true", ["true"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ctypes.sizeof(ctypes.c_void_p) == 8

"""Stop another process with ptrace(2), as far as a capture needs it, on x86-64.

One thread must make all calls: the kernel treats it as the tracer. The process continues when the block ends,
or, after an error in the middle, when the thread ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bough.errors import HostLacks, MachineFailed

_SEIZE, _INTERRUPT, _DETACH, _SYSCALL = 0x4206, 0x4207, 17, 24
_GET_REGISTERS, _SET_REGISTERS, _GET_SIGNAL_MASK, _GET_RSEQ = 12, 13, 0x420A, 0x420F
#: Linux: __WALL and __WNOTHREAD (wait(2)).
_WAIT_ALL, _WAIT_OWN = 0x40000000, 0x20000000
_GET_ROBUST_LIST = 274
_RT_SIGACTION = 13
#: struct kernel_sigaction.
_ACTION_BYTES = 32
_SYSCALL_INSTRUCTION = b"\x0f\x05"
#: Results of a waiting call after its thread was stopped: EINTR, or ERESTARTSYS, ERESTARTNOINTR,
#: ERESTARTNOHAND and ERESTART_RESTARTBLOCK (linux/errno.h). The kernel translates these results later.
_INTERRUPTED = (-4, -512, -513, -514, -516)
#: Below the stack pointer and the ABI's red zone, which a function may use without notice.
_SCRATCH_BELOW = 1024

#: struct user_regs_struct, sys/user.h.
REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_WORD = (1 << 64) - 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.syscall.restype = ctypes.c_long

Registers = dict[str, int]


@dataclass(frozen=True)
class Thread:
    """A thread that waits in a system call.

    Attributes:
        inner_id: its number in its own pid namespace.
        registers: set so that the thread makes the call again.
        robust: address and size of its robust list (get_robust_list(2)).
        rseq: address, size and signature of its restartable sequences (rseq(2)); all 0 if unused.
        signal_mask: the blocked signals.
    """

    number: int
    inner_id: int
    name: bytes
    registers: Registers
    robust: tuple[int, int]
    rseq: tuple[int, int, int]
    signal_mask: int


class Stopped:
    """A process with all threads stopped. Made by `stopped`."""

    def __init__(self, pid: int, numbers: list[int], memory: int) -> None:
        self.pid = pid
        self._numbers = numbers
        self._memory = memory

    def read(self, address: int, length: int) -> bytes:
        """Read memory. Raises MachineFailed: a part is missing."""
        try:
            data = os.pread(self._memory, length, address)
        except OSError as error:
            raise MachineFailed(f"the memory of QEMU at {address:#x} cannot be read: {error}") from error
        if len(data) != length:
            raise MachineFailed(f"the memory of QEMU at {address:#x} ends too early")
        return data

    def threads(self) -> list[Thread]:
        """Return the threads, the main thread first. Raises MachineFailed: a thread is busy."""
        return [self._thread(number) for number in self._numbers]

    def signal_actions(self) -> list[tuple[int, bytes]]:
        """Return signal -> action (struct kernel_sigaction) of all non-default actions. The main thread is
        made to ask the kernel.
        """
        status = Path(f"/proc/{self.pid}/status").read_text()
        cared = 0
        for field in ("SigCgt", "SigIgn"):
            found = re.search(rf"^{field}:\s*([0-9a-f]+)$", status, re.MULTILINE)
            cared |= int(found[1], 16) if found else 0
        first = self._numbers[0]
        before = _registers(first)
        buffer = (before["rsp"] - _SCRATCH_BELOW) & ~15
        actions = []
        try:
            for signal in (number for number in range(1, 65) if cared >> (number - 1) & 1):
                if _call(first, before, _RT_SIGACTION, signal, 0, buffer, 8) != 0:
                    raise MachineFailed(f"QEMU does not tell what it does with signal {signal}")
                actions.append((signal, self.read(buffer, _ACTION_BYTES)))
        finally:
            _set_registers(first, before)
        return actions

    def _thread(self, number: int) -> Thread:
        status = Path(f"/proc/{self.pid}/task/{number}/status").read_text(errors="surrogateescape")
        inner = re.search(r"^NSpid:(?:\s+\d+)*\s+(\d+)$", status, re.MULTILINE)
        name = re.search(r"^Name:\t(.*)$", status, re.MULTILINE)
        if inner is None or name is None:
            raise HostLacks("this host's /proc does not tell the threads of a process")
        registers = _registers(number)
        is_in_call = (
            self.read(registers["rip"] - 2, 2) == _SYSCALL_INSTRUCTION and not registers["orig_rax"] >> 63
        )
        # A call that has just returned must not be made again: a repeated close could close another file.
        if not is_in_call or ctypes.c_int64(registers["rax"]).value not in _INTERRUPTED:
            raise MachineFailed(f"QEMU's thread {name[1]!r} is in the middle of something")
        # The thread was waiting and makes the same call again.
        registers |= {"rip": registers["rip"] - 2, "rax": registers["orig_rax"]}
        return Thread(
            number=number,
            inner_id=int(inner[1]),
            name=name[1].encode(errors="surrogateescape")[:15],
            registers=registers,
            robust=_robust_list(number),
            rseq=_rseq(number),
            signal_mask=_signal_mask(number),
        )


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[Stopped]:
    """Stop all threads in the block. Raises HostLacks: the host forbids tracing. MachineFailed: the process
    is gone.
    """
    numbers: list[int] = []
    try:
        try:
            wanted = sorted(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())
            wanted.sort(key=lambda number: number != pid)  # the main thread first
            for number in wanted:
                _ptrace(_SEIZE, number)
                numbers.append(number)
            for number in numbers:
                _ptrace(_INTERRUPT, number)
            _wait(*numbers)
            memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise HostLacks(f"this host does not let bough trace its own QEMU: {error}") from error
        except (ProcessLookupError, FileNotFoundError, ChildProcessError) as error:
            raise MachineFailed("QEMU is gone, or changed while it was looked at") from error
        try:
            yield Stopped(pid, numbers, memory)
        finally:
            os.close(memory)
    finally:
        for number in numbers:
            with contextlib.suppress(OSError):
                _ptrace(_DETACH, number)


def _ptrace(request: int, number: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, number, address, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}: {os.strerror(ctypes.get_errno())}")


def _wait(*numbers: int) -> None:
    """Wait until the threads have stopped.

    Raises ProcessLookupError: a traced thread ended. A wait for one thread of a killed process can last for
    ever: the kernel reports the end of a main thread only after the end of all others was collected.
    """
    left = set(numbers)
    while left:
        number, status = os.waitpid(-1, _WAIT_ALL | _WAIT_OWN)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(f"thread {number} ended")
        left.discard(number)


def _registers(number: int) -> Registers:
    values = (ctypes.c_uint64 * len(REGISTERS))()
    _ptrace(_GET_REGISTERS, number, 0, ctypes.addressof(values))
    return dict(zip(REGISTERS, values, strict=True))


def _set_registers(number: int, registers: Registers) -> None:
    values = (ctypes.c_uint64 * len(REGISTERS))(*(registers[name] & _WORD for name in REGISTERS))
    _ptrace(_SET_REGISTERS, number, 0, ctypes.addressof(values))


def _call(number: int, before: Registers, call: int, *arguments: int) -> int:
    """Make a waiting thread call the kernel, and return the result."""
    asked = dict(zip(_ARGUMENTS, arguments, strict=False))
    # An invalid call number: the kernel must not restart the interrupted call.
    _set_registers(number, {**before, "rip": before["rip"] - 2, "rax": call, "orig_rax": _WORD, **asked})
    for _ in ("into the call", "out of it"):
        _ptrace(_SYSCALL, number)
        _wait(number)
    return ctypes.c_int64(_registers(number)["rax"]).value


def _robust_list(number: int) -> tuple[int, int]:
    head, size = ctypes.c_uint64(), ctypes.c_uint64()
    if _libc.syscall(_GET_ROBUST_LIST, number, ctypes.byref(head), ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), "get_robust_list")
    return head.value, size.value


def _rseq(number: int) -> tuple[int, int, int]:
    found = ctypes.create_string_buffer(24)
    try:
        _ptrace(_GET_RSEQ, number, len(found), ctypes.addressof(found))
    except OSError:  # before Linux 5.13: the C library's value goes stale; it is a hint only
        return 0, 0, 0
    address, size, signature = struct.unpack_from("=QII", found.raw)
    return address, size, signature


def _signal_mask(number: int) -> int:
    mask = ctypes.c_uint64()
    _ptrace(_GET_SIGNAL_MASK, number, ctypes.sizeof(mask), ctypes.addressof(mask))
    return mask.value

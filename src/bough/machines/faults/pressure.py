"""Pressure inside a guest: busy processors, used memory, a full file system. Needs only /bin/sh there."""

from __future__ import annotations

import re

from bough.errors import InvalidInput
from bough.machines.faults.guest_script import run_script
from bough.machines.machine import Machine

MOST_LOOPS = 256
_PATH = re.compile(r"/[^\0\n]{0,1000}")
#: $1 is the directory of the fault below /run, $2 the number of loops. A loop has a session of its own, so it
#: outlives the command that started it. A repeated call starts only the loops that have ended.
_LOOPS = """
mkdir -p "$1" || exit 1
count=0
while [ "$count" -lt "$2" ]; do
    if ! { [ -e "$1/$count" ] && kill -0 "$(cat "$1/$count")" 2>/dev/null; }; then
        setsid sh -c 'echo $$ >"$0"; while :; do :; done' "$1/$count" </dev/null >/dev/null 2>&1 &
    fi
    count=$((count + 1))
done
exit 0
"""
_END_LOOPS = """
for file in "$1"/[0-9]*; do [ -e "$file" ] && kill -9 "$(cat "$file")" 2>/dev/null; done
rm -rf "$1"
"""
_MEMORY = """
total=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)
[ "$(($2 / 1024))" -le "$total" ] || {
    echo "the guest has only $((total / 1024)) MiB of memory" >&2; exit 1; }
mkdir -p "$1" || exit 1
grep -qF " $1 tmpfs " /proc/mounts || mount -t tmpfs -o "size=$2,mode=0700" bough-fault "$1" || exit 1
[ "$(stat -c %s "$1/memory" 2>/dev/null)" = "$2" ] && exit 0
head -c "$2" /dev/zero >"$1/memory" 2>/dev/null || { umount "$1"; echo "the memory runs out" >&2; exit 1; }
"""
_END_MEMORY = 'umount "$1" 2>/dev/null || umount -l "$1" 2>/dev/null; rmdir "$1" 2>/dev/null; exit 0'
_FULL = """
[ -d "$1" ] || { echo "$1 is no directory" >&2; exit 1; }
file=$1/$2
[ -s "$file" ] && exit 0
: >"$file" || exit 1
set -- "$file" $(stat -f -c '%f %S' "$1")
size=$(($2 * $3)) have=0
while [ "$size" -ge 4096 ]; do
    if fallocate -o "$have" -l "$size" "$file" 2>/dev/null
    then have=$((have + size)); else size=$((size / 2)); fi
done
# The rest, and file systems without fallocate.
dd if=/dev/zero bs=65536 2>/dev/null >>"$file"
dd if=/dev/zero bs=512 2>/dev/null >>"$file"
exit 0
"""
_END_FULL = 'rm -f "$1/$2"'


def _place(fault: str) -> str:
    return f"/run/bough-fault-{fault}"


def _file(fault: str) -> str:
    return f".bough-fault-{fault}"


def check_loops(count: int) -> None:
    if not 1 <= count <= MOST_LOOPS:
        raise InvalidInput(f"1 to {MOST_LOOPS} loops, not {count}")


def check_path(path: str) -> None:
    if not _PATH.fullmatch(path):
        raise InvalidInput(f"{path[:80]!r} is no absolute path of a directory")


async def burn_processors(machine: Machine, fault: str, count: int) -> None:
    """Start loops that use a processor each. A repeated call starts only the loops that have ended."""
    await run_script(machine, _LOOPS, _place(fault), str(count))


async def end_loops(machine: Machine, fault: str) -> None:
    await run_script(machine, _END_LOOPS, _place(fault))


async def use_memory(machine: Machine, fault: str, size_bytes: int) -> None:
    """Fill a RAM disk, unless it is full. Raises GuestRefused: the guest has less memory."""
    await run_script(machine, _MEMORY, _place(fault), str(size_bytes))


async def free_memory(machine: Machine, fault: str) -> None:
    await run_script(machine, _END_MEMORY, _place(fault))


async def fill_file_system(machine: Machine, fault: str, path: str) -> None:
    """Use all free space of the file system of a directory, also the part that root alone may use. A repeated
    call changes nothing.
    """
    await run_script(machine, _FULL, path, _file(fault), timeout_s=600)


async def free_file_system(machine: Machine, fault: str, path: str) -> None:
    await run_script(machine, _END_FULL, path, _file(fault))

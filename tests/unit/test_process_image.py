"""The description of a process image and the input of the loader. The loader itself is tested in
tests/machines.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bough.errors import MachineFailed
from bough.forks.process_image import device_state, loader_x86_64
from bough.forks.process_image.capture import END_SLOT, FIRST_SLOT
from bough.forks.process_image.captured import Area, CapturedProcess, Descriptor
from bough.forks.process_image.device_state import mark_cpus, render_state_file, split_cpus
from bough.forks.process_image.identifiers import Identifiers, fit_of, identifiers_of
from bough.forks.process_image.loader_program import render_program
from bough.forks.process_image.vcpu_words import find_words, put_words
from bough.networks.switch_port import SwitchPort
from bough.qemu.nic import is_card_socket
from bough.qemu.plan import DiskPlan, Firmware, Layer, NicPlan
from bough.qemu.ram import MemoryFile, Template
from bough.qemu.syscalls import _MACHINES, SANDBOXED, render_sandbox
from tests.unit.test_argv import PLAN
from tests.unit.test_qemu_syscalls import ALLOW, verdict

FOLDER = Path(device_state.__file__).parent


def cpu_part(number: int, halted: int, request: int, more: bytes = b"") -> bytes:
    head = b"\x04" + struct.pack(">I", number) + b"\x0acpu_common" + struct.pack(">II", number, 1)
    return head + struct.pack(">II", halted, request) + more + b"\x7e" + struct.pack(">I", number)


STREAM = b"QEVM\0\0\0\3before" + cpu_part(4, 1, 16) + b"between" + cpu_part(6, 0, 2) + b"after"


def test_parts_of_vcpus_are_taken_out() -> None:
    rest, words = split_cpus(STREAM)
    assert rest == b"QEVM\0\0\0\3beforebetweenafter"
    assert [(word.halted, word.interrupt_request) for word in words] == [(1, 16), (0, 2)]


def test_marks_take_their_place() -> None:
    marked = mark_cpus(STREAM)
    rest, words = split_cpus(marked.stream)
    assert len(marked.stream) == len(STREAM)
    assert words == marked.marks
    assert rest == split_cpus(STREAM)[0]
    assert len({word for mark in words for word in (mark.halted, mark.interrupt_request)}) == 4
    assert all(mark.interrupt_request & 0xFFFF == 0 and mark.halted for mark in words)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"QEVM",
        cpu_part(4, 1, 0)[5:],
        b"\x03" + cpu_part(4, 1, 0)[1:],
        cpu_part(4, 1, 0)[:-5],
        cpu_part(4, 1, 0, b"\x05\x10exception_index0"),
        cpu_part(4, 1, 0, b"x" * 500),
    ],
)
def test_a_state_that_is_not_known(stream: bytes) -> None:
    with pytest.raises(MachineFailed):
        split_cpus(stream)


@pytest.mark.parametrize("size", [1, 65536, 65537, 300_000])
def test_a_state_file_is_an_image_with_a_snapshot(tmp_path: Path, size: int) -> None:
    path = tmp_path / "state.qcow2"
    path.write_bytes(render_state_file(os.urandom(size)))
    subprocess.run(["qemu-img", "check", path], check=True, capture_output=True)
    listed = subprocess.run(["qemu-img", "snapshot", "-l", path], check=True, capture_output=True, text=True)
    assert device_state.TAG in listed.stdout


def test_a_state_that_is_too_large() -> None:
    with pytest.raises(MachineFailed):
        render_state_file(bytes((512 << 20) + 1))


PROGRAM = """
import ctypes, mmap, sys
words = [int(word) for word in sys.argv[1:]]
kept = (ctypes.c_uint32 * 4096)()
for at, word in enumerate(words):
    kept[100 + at * 7] = word
print(ctypes.addressof(kept), flush=True)
sys.stdin.readline()
print(*(kept[100 + at * 7] for at in range(len(words))), flush=True)
sys.stdin.readline()
"""


def test_words_are_found_and_put() -> None:
    marks = mark_cpus(STREAM).marks
    words = [word for mark in marks for word in (mark.halted, mark.interrupt_request | 2)]
    process = subprocess.Popen(
        # The process holds its arguments as text only, so its memory has no other copy of a word.
        ["python3", "-c", PROGRAM, *map(str, words)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = int(process.stdout.readline()) + 400
        try:
            found = find_words(process.pid, marks)
        except MachineFailed:
            process.kill()
            pytest.skip("Python keeps such a number a second time")
        assert [place.halted for place in found] == [first, first + 56]
        assert [place.interrupt_request for place in found] == [first + 28, first + 84]
        put_words(process.pid, found, split_cpus(STREAM)[1])
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().split() == ["1", str(16 | 2), "0", "2"]
        process.stdin.write("\n")


def test_words_of_a_process_that_is_gone() -> None:
    with pytest.raises(MachineFailed):
        find_words(2**22 - 1, mark_cpus(STREAM).marks)


PLAN_TO_CAPTURE = replace(
    PLAN,
    accelerator="tcg",
    cpu_model="EPYC,rdrand=off,rdseed=off",
    firmware=Firmware("bios", "/usr/share/seabios/bios-256k.bin"),
    direct_boot=None,
    media=(),
    display=False,
    nics=(NicPlan("52:54:00:12:34:56", "passt"),),
    disks=(DiskPlan("disk0", "/m/aaaaaaaaaaaa/disks/0-00000000.qcow2", "s", backing=(Layer("/i", "raw"),)),),
)


def test_plans_that_are_alike() -> None:
    other = replace(
        PLAN_TO_CAPTURE,
        machine_id="bbbbbbbbbbbb",
        name="other",
        uuid="5c1c2f6e-6f3e-4c5b-8a40-0d3a7e7f0001",
        vmgenid="5c1c2f6e-6f3e-4c5b-8a40-0d3a7e7f0002",
        nics=(NicPlan("52:54:00:65:43:21", "passt"),),
        disks=(replace(PLAN_TO_CAPTURE.disks[0], path="/m/bbbbbbbbbbbb/disks/0-11111111.qcow2"),),
    )
    assert fit_of(other) == fit_of(PLAN_TO_CAPTURE) is not None
    assert fit_of(replace(other, vcpus=7)) != fit_of(other)
    assert fit_of(replace(other, nics=())) != fit_of(other)
    jail = replace(PLAN_TO_CAPTURE.jail, bwrap="/usr/bin/bwrap")
    at_switch = [
        replace(
            one,
            jail=jail,
            nics=(*one.nics, NicPlan(mac, "switch", id="nic1", place=1, port=SwitchPort(port))),
        )
        for one, mac, port in (
            (other, "52:54:00:00:00:01", "/p1"),
            (PLAN_TO_CAPTURE, "52:54:00:00:00:02", "/p2"),
        )
    ]
    assert fit_of(at_switch[0]) == fit_of(at_switch[1]) is not None
    assert fit_of(at_switch[0]) != fit_of(other)
    backing = (Layer("/layer", "qcow2"), *other.disks[0].backing)
    assert fit_of(replace(other, disks=(replace(other.disks[0], backing=backing),))) != fit_of(other)


@pytest.mark.parametrize(
    "change",
    [
        {"accelerator": "kvm"},
        {"arch": "aarch64"},
        {"display": True},
        {"firmware": Firmware("uefi", "/code", "/variables")},
        {"nics": (NicPlan("52:54:00:12:34:56", "user"),)},
        {"nics": (NicPlan("52:54:00:12:34:56", "isolated", model="e1000"),)},
        {"nics": (NicPlan("52:54:00:12:34:56", "switch", port=SwitchPort("/p")),)},
        {"cpu_model": "EPYC,rdseed=off"},
        {"cpu_model": "EPYC,rdrand=on,rdseed=off"},
        {"disks": (replace(PLAN_TO_CAPTURE.disks[0], backing=()),)},
        {"disks": (replace(PLAN_TO_CAPTURE.disks[0], read_only=True),)},
        {"disks": (replace(PLAN_TO_CAPTURE.disks[0], bus="sata"),)},
        {"agent_on_serial": True},
        {"tpm_state": "/m/aaaaaaaaaaaa/disks/tpm.state"},
    ],
)
def test_plans_that_are_none_of_these(change: dict[str, object]) -> None:
    assert fit_of(replace(PLAN_TO_CAPTURE, **change)) is None


def test_marks_stand_for_each_other() -> None:
    ours = identifiers_of(PLAN_TO_CAPTURE)
    assert ours.disks == ("0-00000000",)
    its = Identifiers("b" * len(ours.machine_id), ours.uuid, ours.vmgenid, ours.macs, ("0-11111111",))
    ours.check_fits(its)
    path = f"/m/{ours.machine_id}/disks/0-00000000.qcow2"
    assert ours.translate(path, its) == f"/m/{its.machine_id}/disks/0-11111111.qcow2"
    with pytest.raises(MachineFailed):
        ours.check_fits(replace(its, machine_id="short"))
    with pytest.raises(MachineFailed):
        ours.check_fits(replace(its, macs=()))


def captured_nothing(identifiers: Identifiers, image: Template) -> CapturedProcess:
    return CapturedProcess(
        identifiers=identifiers,
        fit=(),
        image=image,
        areas=(Area(0x10000, 4096, 3, 2, "image"),),
        files={},
        kernel_areas=((0x7F0000000000, 8192, "[vvar]"), (0x7F0000002000, 4096, "[vdso]")),
        descriptors=(Descriptor(9, "given", 2, "qmp"), Descriptor(10, "file", 0, "/dev/urandom")),
        threads=(),
        tid_offset=720,
        signal_actions=(),
    )


@pytest.mark.parametrize("numbers", [(5, 6), (900, 901), (1022, 1023), (4000, 4001)])
def test_what_is_given_waits_where_nothing_else_is(numbers: tuple[int, int]) -> None:
    """Descriptors wait in unused slots. Their own numbers may be high: a service can have many open files."""
    identifiers = identifiers_of(PLAN_TO_CAPTURE)
    with MemoryFile(4096) as file:
        captured = captured_nothing(identifiers, file.seal())
    given = {"qmp": numbers[0], "image": numbers[1]}
    program = render_program(captured, identifiers, given, sandboxed=False)
    _, first, count, *_ = struct.unpack_from("=5Q", program)
    steps = [struct.unpack_from("=7Q", program, first + 56 * at) for at in range(count)]
    copies = [step[1:3] for step in steps if step[0] == 2]
    assert [source for source, _ in copies[:2]] == list(numbers)
    slots = [slot for _, slot in copies[:2]]
    assert len({*slots, *numbers}) == 4
    assert all(FIRST_SLOT <= slot < END_SLOT for slot in slots)
    assert copies[2] == (slots[0], 9)
    with pytest.raises(MachineFailed, match="qmp"):
        render_program(captured, identifiers, {"image": 5}, sandboxed=False)


def test_the_socket_of_a_card_is_bound_anew() -> None:
    path = "/run/bough-ports/nic1/nic.sock"
    assert is_card_socket(path)
    assert not any(
        map(is_card_socket, ("", "/nic.sock", "/run/bough-ports/nic.sock", f"{path}.new", f"/x{path}"))
    )
    identifiers = identifiers_of(PLAN_TO_CAPTURE)
    with MemoryFile(4096) as file:
        captured = captured_nothing(identifiers, file.seal())
    socket = Descriptor(20, "bound", 0o2004002, path)
    captured = replace(captured, descriptors=(*captured.descriptors, socket))
    program = render_program(captured, identifiers, {"qmp": 5, "image": 6}, sandboxed=False)
    _, first, count, *_ = struct.unpack_from("=5Q", program)
    steps = [struct.unpack_from("=7Q", program, first + 56 * at) for at in range(count)]
    ((_, number, at, size, flags, *_),) = [step for step in steps if step[0] == 17]
    assert (number, size, flags) == (20, 110, 0o2004000)
    assert program[at : at + size] == b"\x01\0" + path.encode().ljust(108, b"\0")


def test_the_loader_is_that_of_its_source() -> None:
    """If the test fails, run scripts/make_loader.py."""
    source = (FOLDER / "loader.c").read_bytes()
    assert hashlib.sha256(source).hexdigest() == loader_x86_64.SOURCE_SHA256


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a program of x86_64")
@pytest.mark.parametrize(
    ("arguments", "content"), [([], b""), (["0"], b""), (["0"], bytes(4096)), (["99"], b"")]
)
def test_a_loader_that_is_given_nonsense_says_so(
    tmp_path: Path, arguments: list[str], content: bytes
) -> None:
    loader, given = tmp_path / "loader", tmp_path / "given"
    loader.write_bytes(loader_x86_64.PROGRAM)
    loader.chmod(0o755)
    given.write_bytes(content)
    with given.open("rb") as stdin:
        done = subprocess.run([loader, *arguments], stdin=stdin, capture_output=True, check=False, text=True)
    assert done.returncode == 71
    assert done.stderr.startswith("bough-loader: step 0 ")


def test_the_filter_is_that_of_a_running_qemu() -> None:
    name, _, clone = _MACHINES["x86_64"]
    program = render_sandbox()
    for number in range(470):
        if number == clone:
            continue
        expected = 0x50000 | errno.EPERM if number in SANDBOXED.values() else ALLOW
        expected = 0x50000 | errno.ENOSYS if number == 435 else expected
        assert verdict(program, name, number) == expected, number
    assert verdict(program, name, clone, 0x3D0F00) == ALLOW  # a thread
    assert verdict(program, name, clone, 17) == 0x50000 | errno.EPERM  # fork

"""Block nodes: one description for the command line and for QMP."""

from __future__ import annotations

from bough.qemu.block import DiskNode, overlay_node, render_option

NODE = DiskNode("disk0", "/m/a,b.qcow2", "qcow2", discard=True, backing="disk0-base0")


def test_the_command_line_and_qmp_say_the_same() -> None:
    added = NODE.qmp_options()
    file = added.pop("file")
    access = {"read-only": False, "auto-read-only": False}
    _, told_file, _, told_format = NODE.arguments()
    assert sorted(told_file.split(",")) == sorted(render_option("", file | access).split(","))
    both = added | access | {"file": "disk0-file"}
    assert sorted(told_format.split(",")) == sorted(render_option("", both).split(","))
    assert "filename=/m/a,,b.qcow2" in told_file


def test_a_file_that_qmp_adds_becomes_read_only_with_its_format() -> None:
    assert "read-only" not in NODE.qmp_options()["file"]


def test_qmp_never_opens_a_backing_file_that_only_a_header_names() -> None:
    assert DiskNode("d", "/d.qcow2", "qcow2").qmp_options()["backing"] is None
    assert "backing" not in DiskNode("d", "/d.raw", "raw").qmp_options()


def test_an_overlay_is_named_after_its_file() -> None:
    node = overlay_node("/m/disks/0-1a2b3c4d.qcow2", "0-1a2b3c4d.qcow2", backing="disk0")
    assert (node.name, node.file_name, node.backing) == ("disk0-1a2b3c4d", "disk0-1a2b3c4d-file", "disk0")
    assert node.discard

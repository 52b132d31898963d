"""Apply layers to a directory: `python3 -m bough.images.oci.inside.unpack REQUEST DIRECTORY`.

The request is JSON of the service (images/oci/layers.py). The open blobs are inherited descriptors. Each line
of the output is a JSON object with one key: "read" (bytes of the blobs until now, and the layer's number),
"done", or "failure" as the last one.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bough.images.oci.inside.failure import NO_SPACE, Failure
from bough.images.oci.inside.layer_changes import LayerChanges, Notes
from bough.images.oci.inside.layer_stream import Allowance, Blob, LayerStream
from bough.images.oci.inside.tar_entries import read_entries
from bough.images.oci.inside.tree import Tree

#: Far above the memory that honest layers need. Above it the program fails, not the host.
_MOST_ADDRESSES_BYTES = 1 << 30
_PROGRESS_S = 0.3


class Reporter:
    """Reports to the service.

    Attributes:
        layer: number of the present layer.
    """

    def __init__(self) -> None:
        self._read = 0
        self.layer = 0
        self._last = 0.0

    def begin_layer(self, number: int) -> None:
        self.layer = number
        self._report()

    def add(self, count: int) -> None:
        self._read += count
        if time.monotonic() - self._last >= _PROGRESS_S:
            self._report()

    def _report(self) -> None:
        self._last = time.monotonic()
        say({"read": {"bytes": self._read, "layer": self.layer}})


def say(report: dict[str, Any]) -> None:
    os.write(1, json.dumps(report).encode() + b"\n")


def apply_all(request: dict[str, Any], root: int, reporter: Reporter) -> dict[str, Any]:
    """Apply the layers in their order. Return what the service is told.

    Raises:
        Failure: a layer is refused; `reporter.layer` is its number.
    """
    os.utime(root, ns=(0, 0))  # otherwise an image without an entry for it would differ each time
    allowance, notes, tree = Allowance(request["most_bytes"]), Notes(), Tree(root)
    changes = LayerChanges(tree, request["most_entries"], notes)
    try:
        for number, layer in enumerate(request["layers"], 1):
            reporter.begin_layer(number)
            blob = Blob(layer["descriptor"], layer["digest"], layer["size_bytes"], layer["diff_id"])
            tree.begin_layer(first=number == 1)
            _apply(LayerStream(blob, allowance, reporter.add), changes, tree)
    finally:
        tree.close()
    return {"entries": changes.entries, "content_bytes": changes.content_bytes, "notes": notes.render()}


def _apply(stream: LayerStream, changes: LayerChanges, tree: Tree) -> None:
    try:
        for entry in read_entries(stream):
            changes.apply(entry, stream)
        tree.end_layer()
        stream.finish()
    finally:
        stream.close()


def main() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESSES_BYTES, _MOST_ADDRESSES_BYTES))
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    sys.setrecursionlimit(4000)
    os.umask(0)
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    reporter = Reporter()
    try:
        done = apply_all(request, os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECTORY), reporter)
    except Failure as failure:
        return _fail(failure.kind, failure.sentence, failure.entry, reporter)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _fail(NO_SPACE, "", "", reporter)
    say({"done": done})
    return 0


def _fail(kind: str, sentence: str, entry: str, reporter: Reporter) -> int:
    say({"failure": {"kind": kind, "sentence": sentence, "entry": entry, "layer": reporter.layer}})
    return 1


if __name__ == "__main__":
    sys.exit(main())

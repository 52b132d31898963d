"""The guest's end of a copy: a command, and the program that the command reads from its standard input."""

from __future__ import annotations

import marshal
from pathlib import Path

_HERE = Path(__file__).parent
_MODULES = ("archive", "notes", "descent", "landing", "pack", "unpack", "ends")
#: The part of bough.errors that those modules use.
_ERRORS = "class ProtocolError(Exception):\n    pass\n"
_BOOT = """
import marshal, os, sys
def read(size):
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            sys.exit(4)
        data += more
    return data
modules, arguments = marshal.loads(read(int(read(10))))
for name, source in modules:
    module = sys.modules[name] = type(sys)(name)
    exec(compile(source, name, "exec"), module.__dict__)
module.main(*arguments)
"""
NO_PYTHON = 75
# The usual places first: a guest's PATH may be broken.
_FIND = f"""
for python in /usr/bin/python3 /usr/local/bin/python3 "$(command -v python3)"; do
  [ -x "$python" ] && exec "$python" -I -S -c "$1"
done
exit {NO_PYTHON}
"""
COMMAND = ("/bin/sh", "-c", _FIND, "sh", _BOOT)


def render_program(action: str, paths: list[bytes], names: list[bytes], owner: bool) -> bytes:
    """Input for COMMAND, which calls `ends.main` with these arguments."""
    modules = [("bough.errors", _ERRORS)]
    modules += [(f"bough.client.{name}", (_HERE / f"{name}.py").read_text()) for name in _MODULES]
    # Every Python 3 reads version 2 of this format, and paths stay bytes.
    content = marshal.dumps((modules, (action, paths, names, owner)), 2)
    return b"%010d" % len(content) + content

"""The guest's end of a copy: a command, and the program on the standard input of the command."""

from __future__ import annotations

import marshal
import os
import zlib
from importlib.abc import InspectLoader
from importlib.util import MAGIC_NUMBER, find_spec
from pathlib import Path
from types import CodeType

_HERE = Path(__file__).parent
_MODULES = ("archive", "report", "tree_walk", "unnamed_file", "pack", "unpack", "ends")
#: The part of bough.errors for these modules.
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
magic, compiled, sources, arguments = marshal.loads(read(int(read(10))))
if magic == sys.modules["_frozen_importlib_external"].MAGIC_NUMBER:
    modules = marshal.loads(compiled)
else:
    import zlib
    sources = marshal.loads(zlib.decompress(sources))
    modules = [(name, compile(source, name, "exec")) for name, source in sources]
for name, code in modules:
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main(*arguments)
"""
NO_PYTHON = 75
# The usual places first: a guest's PATH may be broken. Then the agent disk (images/agent_disk).
_FIND = f"""
for python in /usr/bin/python3 /usr/local/bin/python3 "$(command -v python3)"; do
  [ -x "$python" ] && exec "$python" -I -S -c "$1"
done
for disk in /.bough /run/bough/disk /dev/.bough; do
  [ -x "$disk/bin/busybox" ] && exec "$disk/bin/busybox" sh "$disk/bin/run" python3 -I -S -c "$1"
done
exit {NO_PYTHON}
"""
COMMAND = ("/bin/sh", "-c", _FIND, "sh", _BOOT)


def render_program(action: str, paths: list[bytes], names: list[bytes], owner: bool) -> bytes:
    """Return the input for COMMAND, which calls `ends.main` with these arguments."""
    sources = [("bough.errors", _ERRORS)]
    sources += [(f"bough.client.copying.{name}", (_HERE / f"{name}.py").read_text()) for name in _MODULES]
    # A guest with the host's version of Python need not compile. A compilation takes three times as long as
    # the start of Python.
    compiled = marshal.dumps([(name, _code_of(name, source)) for name, source in sources])
    # Every Python 3 reads version 2 of this format, and paths stay bytes.
    arguments = (action, paths, names, owner, os.geteuid())
    packed = zlib.compress(marshal.dumps(sources, 2), 1)
    content = marshal.dumps((MAGIC_NUMBER, compiled, packed, arguments), 2)
    return b"%010d" % len(content) + content


def _code_of(name: str, source: str) -> CodeType:
    """Return the code of a module, from its .pyc file if possible, without paths of the host."""
    spec = find_spec(name)
    loader = spec.loader if spec is not None and name != "bough.errors" else None
    code = loader.get_code(name) if isinstance(loader, InspectLoader) else None
    return _rename(code or compile(source, name, "exec"), name)


def _rename(code: CodeType, name: str) -> CodeType:
    constants = tuple(_rename(item, name) if isinstance(item, CodeType) else item for item in code.co_consts)
    return code.replace(co_filename=name, co_consts=constants)

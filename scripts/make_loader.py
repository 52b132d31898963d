"""Build the loader of process images: src/bough/forks/process_image/loader.c into loader_x86_64.py.

Run the script after a change of loader.c. Nothing else in bough needs a compiler.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import textwrap
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "src" / "bough" / "forks" / "process_image"
FLAGS = [
    *("-Os", "-Wall", "-Wextra", "-Werror", "-static", "-nostdlib", "-ffreestanding", "-fno-builtin", "-s"),
    *(
        "-fno-stack-protector",
        "-fcf-protection=none",
        "-fno-tree-loop-distribute-patterns",
        "-mgeneral-regs-only",
    ),
    *("-fno-asynchronous-unwind-tables", "-mcmodel=large", "-fno-pie", "-no-pie", "-Wl,--build-id=none"),
    *("-Wl,-Ttext-segment=0x10000000000", "-Wl,-z,noexecstack,-z,noseparate-code"),
]


def main() -> None:
    source = FOLDER / "loader.c"
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "loader"
        subprocess.run(["gcc", *FLAGS, "-o", built, source], check=True)
        content = built.read_bytes()
    lines = "\n".join(f'    "{line}"' for line in textwrap.wrap(content.hex(), 96))
    (FOLDER / "loader_x86_64.py").write_text(
        '"""The build of loader.c, written by scripts/make_loader.py."""\n\n'
        f'SOURCE_SHA256 = "{hashlib.sha256(source.read_bytes()).hexdigest()}"\n'
        f"PROGRAM = bytes.fromhex(\n{lines}\n)\n"
    )
    print(f"{len(content)} bytes")


if __name__ == "__main__":
    main()

"""Run the command `bough` by `python -m bough`. The script need not be on PATH."""

from bough.cli.entry import main

main()

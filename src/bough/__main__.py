"""Run the command `bough` as `python -m bough`, even if the script is not on PATH."""

from bough.cli.entry import main

main()

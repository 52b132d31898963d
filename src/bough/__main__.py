"""`python -m bough`: the command, also where its script is not on PATH."""

from bough.cli.entry import main

main()

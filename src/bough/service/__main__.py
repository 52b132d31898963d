"""Run `python -m bough.service`, which the first command that needs the service starts."""

from bough.service.server import main

if __name__ == "__main__":
    main()

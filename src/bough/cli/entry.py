"""`bough`: where a call begins, and what an error looks like to a person."""

from __future__ import annotations

import gc
import os
import sys

from bough.errors import BoughError

# A command makes little garbage and much that stays: imports are a tenth quicker without a look at all of it.
gc.set_threshold(100_000)


def main() -> None:
    """The entry point. Nothing that happens shows a traceback to a user, unless BOUGH_DEBUG is set."""
    try:
        _leave(_call())
    except BoughError as error:
        from bough.cli.output import show_error

        show_error(error)
        _leave(124 if error.code in ("deadline-exceeded", "agent-timeout") else 1)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        _leave(130)
    except BrokenPipeError:
        # Whoever read our output has seen enough, like `head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(0)
    except Exception as error:
        if os.environ.get("BOUGH_DEBUG"):
            raise
        print(f"error: bough made a mistake: {type(error).__name__}: {error}", file=sys.stderr)
        print("\nhint: run it again with BOUGH_DEBUG=1 for the whole story", file=sys.stderr)
        _leave(1)


def _call() -> int:
    words = sys.argv[1:]
    if words[:1] in (["exec"], ["run"]):
        from bough.cli.quick import attempt

        status = attempt(words)
        if status is not None:
            return status
    from bough.cli.main import call

    return call()


def _leave(status: int) -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if os.environ.get("BOUGH_DEBUG"):
        sys.exit(status)
    # All is closed and written; taking the interpreter apart would cost 10 ms that somebody waits for.
    sys.stderr.flush()
    os._exit(status)

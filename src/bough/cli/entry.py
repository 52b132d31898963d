"""The entry point of `bough`. Errors become messages and exit statuses."""

from __future__ import annotations

import gc
import os
import sys

from bough.errors import BoughError

# A command makes little garbage and keeps most objects. With fewer collections, imports take 10 % less time.
gc.set_threshold(100_000)


def main() -> None:
    """Run the command line and exit. Users see no traceback unless BOUGH_DEBUG is set."""
    open_standard_streams()
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
        # The reader of the output, such as `head`, has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(0)
    except Exception as error:
        if os.environ.get("BOUGH_DEBUG"):
            raise
        print(f"error: bug in bough: {type(error).__name__}: {error}", file=sys.stderr)
        print("\nhint: run the command again with BOUGH_DEBUG=1 to see the traceback", file=sys.stderr)
        _leave(1)


def open_standard_streams() -> None:
    """Open closed standard streams on /dev/null, as ssh does: a socket must not become standard input."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _call() -> int:
    words = sys.argv[1:]
    if words[:1] in (["exec"], ["run"]):
        from bough.cli.fast_path import attempt

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
    # Everything is closed and written. The interpreter's own shutdown would cost the user another 10 ms.
    sys.stderr.flush()
    os._exit(status)

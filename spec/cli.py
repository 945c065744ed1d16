"""What every tool's command line shares: one line for an error, and the exit code that goes with it."""

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from spec.errors import PassingFault, SpecError


def run(command: Callable[..., Any]) -> None:
    """Run `command` as a Typer command line and exit with its code.

    Expected errors become one line on stderr. Anything else is a bug and keeps its traceback (exit 1).
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app(standalone_mode=True)
    except SpecError as error:
        fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space and run this again" if full else "make it writable or choose another path"
        where = f" at {error.filename}" if error.filename else ""
        fail(f"{os.strerror(error.errno).lower()}{where}: {advice}", PassingFault.exit_code if full else 2)


def fail(message: str, exit_code: int) -> None:
    """Print `message` as one line and exit."""
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(exit_code)

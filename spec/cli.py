"""What every tool's command line shares: one line for an error, and the exit code that goes with it."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.exceptions import TyperException

from spec.errors import BadInput, PassingFault, SpecError, Stopped

_SPACE = ("free some space and run this again", PassingFault)
_RIGHTS = ("make it writable or choose another path", BadInput)
_KIND = ("a file stands where a folder is needed, or the other way round", BadInput)
_DEVICE = ("the file system failed; run this again", PassingFault)
_ADVICE = (
    dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _SPACE)
    | dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS)
    | dict.fromkeys((errno.ENOTDIR, errno.EISDIR), _KIND)
    | dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT), _DEVICE)
)


def run(command: Callable[..., Any]) -> None:
    """Run `command` as a Typer command line and exit with its code.

    Expected errors become one line on stderr. Anything else is a bug and keeps its traceback (exit 1).
    """
    signal.signal(signal.SIGTERM, _stop)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        sys.exit(app(standalone_mode=False))
    except TyperException as error:  # in a box of its own it would be many lines, and a pod's last words are its frame
        fail(f"{error.format_message()}; --help lists what there is", error.exit_code)
    except SpecError as error:
        fail(str(error), error.exit_code)
    except OSError as error:
        expected = as_expected(error)
        if expected is None:
            raise
        fail(str(expected), expected.exit_code)


def parsed(command: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    """What `command` would be called with on a command line of these words. Raises `BadInput`."""
    app = typer.Typer(add_completion=False)
    app.command()(command)
    try:
        return typer.main.get_command(app).make_context(command.__module__, list(words)).params
    except TyperException as error:
        raise BadInput(error.format_message()) from error


def as_expected(error: OSError) -> SpecError | None:
    """The one-line error of a full disk, missing rights and the like; None for what would be a bug."""
    if error.errno not in _ADVICE:
        return None
    advice, kind = _ADVICE[error.errno]
    where = f" at {error.filename}" if error.filename else ""
    return kind(f"{os.strerror(error.errno).lower()}{where}: {advice}")


def _stop(*_: object) -> None:
    """Unwind, so that half-written files and unfinished uploads are taken back; steps with more to save do so first."""
    sys.exit(Stopped.exit_code)


def fail(message: str, exit_code: int) -> None:
    """Print `message` as one line and exit."""
    line = " ".join(message.split())
    print("error: " + line, file=sys.stderr, flush=True)
    if log := os.environ.get("TERMINATION_LOG"):  # a pod's, which Kubernetes shows as its last words
        with suppress(OSError):
            Path(log).write_text(line)
    sys.exit(exit_code)

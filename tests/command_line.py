"""The command line of a tool in this process: its exit code and what it prints, without importing torch again."""

import io
import runpy
import signal
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

ROOT = Path(__file__).parents[1]


def run_tool(name: str, *words: object) -> CompletedProcess[str]:
    """`python3 tools/NAME.py WORDS` at the project's root. A traceback is raised, as the bug that it is."""
    argv = [f"tools/{name}.py", *map(str, words)]
    stops, out, err = signal.getsignal(signal.SIGTERM), io.StringIO(), io.StringIO()
    with chdir(ROOT), patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            signal.signal(signal.SIGTERM, stops)
    return CompletedProcess(argv, code, out.getvalue(), err.getvalue())

"""How a command line ends: one line and the exit code that a workflow's retry strategy reads."""

import subprocess
import sys

import pytest

from spec.errors import BadInput, BelowBar, PassingFault, Stopped

TOOL = """
import errno, os, signal
from spec import cli, errors

def main(name: str = "x", count: int = 1) -> None:
    {body}

cli.run(main)
"""


def run_tool(body: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", TOOL.format(body=body), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("kind", [BadInput, BelowBar, PassingFault, Stopped])
def test_an_expected_error_is_one_line_and_its_code(kind: type):
    done = run_tool(f"raise errors.{kind.__name__}('what\\nwhere')")
    assert (done.returncode, done.stderr) == (kind.exit_code, "error: what where\n")


@pytest.mark.parametrize(("name", "code"), [("ENOSPC", 75), ("EROFS", 2), ("ENOTDIR", 2), ("ESTALE", 75)])
def test_the_file_system_s_troubles_are_told_apart(name: str, code: int):
    done = run_tool(f"raise OSError(errno.{name}, 'no', '/some/file')")
    assert done.returncode == code
    assert done.stderr.count("\n") == 1 and "/some/file" in done.stderr


def test_a_bug_keeps_its_traceback():
    done = run_tool("raise FileNotFoundError('x')")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_sigterm_unwinds_and_ends_with_143():
    done = run_tool("""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("taken back")""")
    assert (done.returncode, done.stdout, done.stderr) == (143, "taken back\n", "")


@pytest.mark.parametrize("words", [["--nmae", "y"], ["--name"], ["--count", "two"]])
def test_wrong_options_are_one_line_that_names_them(words: list[str]):
    done = run_tool("pass", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and words[0] in done.stderr, done.stderr


def test_help_and_a_command_that_returns_end_with_0():
    assert run_tool("pass").returncode == run_tool("pass", "--help").returncode == 0


def test_a_pod_s_last_words_are_the_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    run_tool("raise errors.BadInput('what\\nwhere')")
    assert (tmp_path / "log").read_text() == "what where"

"""Waits are told, and only those worth telling."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spec import progress

ROOT = Path(__file__).parents[3]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.05)


def test_a_long_wait_says_what_it_is_and_at_what(quick, capsys):
    with progress.Wait("the server") as wait:
        wait("loading\n weights")
        time.sleep(0.3)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) > 1
    assert all(line == {"waiting_for": "the server", "seconds": 0, "now": "loading weights"} for line in lines)


def test_a_short_wait_says_nothing(capsys):
    with progress.Wait("nothing much"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_wait_that_fails_is_over(quick, capsys):
    with pytest.raises(RuntimeError), progress.Wait("the server"):
        raise RuntimeError
    capsys.readouterr()
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_what_torchao_says_of_kernels_that_nobody_uses_is_not_printed():
    assert not logging.getLogger("torchao").isEnabledFor(logging.WARNING)
    done = subprocess.run(
        [sys.executable, "-c", "import spec, torchao"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Skipping import" not in done.stderr + done.stdout


def test_tools_import_torch_and_transformers_only_while_they_say_so():
    code = """
import runpy, sys
from spec import progress
class Wait:
    def __init__(self, what): assert what.startswith("importing ")
    def __enter__(self): raise SystemExit(0)
    def __exit__(self, *_): pass
progress.Wait = Wait
for name in ("evaluate_draft", "extract_draft_model", "plan", "tune_server", "verify_draft"):
    try:
        runpy.run_path(f"tools/{name}.py")
    except SystemExit:
        pass
    print(name, *sys.modules.keys() & {"torch", "transformers", "torchtune", "datasets", "sglang"})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["evaluate_draft", "extract_draft_model", "plan", "tune_server", "verify_draft"]

"""The kit for CUDA where there is no GPU: it says so in one line, and its parts run at tiny sizes on the CPU."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu.__main__ import PARTS, bounds, main, run_part
from spec import cli

ROOT = Path(__file__).parents[3]


def kit(*arguments):
    command = [sys.executable, "-m", "bench.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)


@pytest.fixture
def refused(monkeypatch, capsys):
    """What the kit says as it ends with 2, and nothing on stdout."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench.gpu", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.run(main)
        captured = capsys.readouterr()
        assert ended.value.code == 2 and captured.out == ""
        return captured.err

    stops = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, stops)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(refused):
    assert refused() == "error: there is no CUDA GPU on this machine; --device cpu --small rehearses the parts\n"


def test_an_unknown_part_is_named(refused):
    assert "--only atention: the parts are machine, attention" in refused("--only", "atention")


def test_the_parts_run_on_a_cpu_at_tiny_sizes(tmp_path):
    asked = ("machine", "attention", "documents", "products", "blocks", "fsdp", "train", "draft", "block_speed")
    asked += ("resume", "many", "profile", "flex", "compiled")
    chosen = [word for name in asked for word in ("--only", name)]
    done = kit("--device", "cpu", "--small", "--output", tmp_path, *chosen)
    results = json.loads((tmp_path / "results.json").read_text())
    assert done.returncode == 0, (done.stdout, results)
    assert {name: its["state"] for name, its in results.items()} == dict.fromkeys(asked, "ok")
    assert results["train"]["figures"]["chats"]["tokens_per_s"] > 0


def test_a_part_that_hangs_costs_its_limit_alone(tmp_path):
    found = run_part("attention", "cpu", True, 0.01, tmp_path)
    assert found["state"] == "failed" and "stopped after 0 s" in found["failures"][0]


def test_what_has_grown_above_the_least_that_the_card_has_shown_is_a_failure():
    def seen(ms, gib=3.0, card="H"):
        return {"figures": {"card": card, "fast": {"ms": ms, "gib": gib}, "loss": 2.0}}

    def least(ms, gib=3.0, card="H"):
        return {"card": card, "fast ms": ms, "fast gib": gib}

    before = {"least": least(100.0)}
    assert bounds({}, seen(100.0)) == (least(100.0), [])
    assert bounds(before, seen(109.0)) == (least(100.0), [])
    assert bounds(before, seen(111.0)) == (least(100.0), ["fast ms: 111.0, 100.0 before"])  # and the bound stays
    assert bounds(before, seen(90.0, 3.4)) == (least(90.0), ["fast gib: 3.4, 3.0 before"])
    assert bounds(before, seen(400.0, card="L")) == (least(400.0, card="L"), [])
    assert bounds(before, {"state": "no time left"}) == (least(100.0), [])


def test_importing_the_parts_leaves_the_gpu_alone():
    """Else no part could use it: they are forks."""
    code = """
import torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
def asked(): raise AssertionError("an import has asked the GPU")
torch.cuda._lazy_init = asked
from bench.gpu.__main__ import PARTS, import_parts
import_parts({module for module, _ in PARTS.values()})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_part_has_a_time_limit_within_the_budget():
    assert all(seconds <= 110 for _, seconds in PARTS.values())

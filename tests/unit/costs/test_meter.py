"""A step's process keeps a record of itself in the run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spec.costs.meter import Meter
from spec.costs.records import Record, of_pod, read_all, write
from spec.errors import BadInput, PassingFault
from spec.storage import open_store
from tests.waiting import wait_for

WORKS = """
import sys, time
from spec.costs.meter import Meter
from spec.storage import open_store
with Meter(open_store(sys.argv[1]), "filter", beat=0.05):
    time.sleep(60)
"""


def test_a_step_is_recorded_from_when_its_process_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CPU_MILLICORES", "500")
    run = open_store(tmp_path)
    with Meter(run, "prepare", gpus=2, kind="NVIDIA-H100"):
        (during,) = read_all(run)
        assert not during.over and during.began < time.time()
    (found,) = read_all(run)
    assert found.over and found.seen >= during.seen
    assert (found.step, found.gpus, found.kind, found.cpus) == ("prepare", 2, "NVIDIA-H100", 0.5)
    assert abs(found.began - during.began) < 0.1


def test_a_step_that_finds_itself_done_costs_nothing_more(tmp_path: Path):
    run = open_store(tmp_path)
    with Meter(run, "prepare") as meter:
        meter.worked = False
    assert read_all(run) == []


def test_a_step_that_fails_has_cost_what_it_took(tmp_path: Path):
    run = open_store(tmp_path)
    with pytest.raises(BadInput), Meter(run, "prepare"):
        raise BadInput("wrong")
    assert read_all(run)[0].over


def test_a_killed_process_counts_to_its_last_beat(tmp_path: Path):
    run = open_store(tmp_path)
    begun = time.time()
    process = subprocess.Popen([sys.executable, "-c", WORKS, str(tmp_path)])
    try:
        wait_for(lambda: any(its.seen > begun + 0.3 for its in read_all(run)), process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (found,) = read_all(run)
    assert not found.over and begun - 1 < found.began < found.seen


def test_a_store_that_is_away_stops_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    run = open_store(tmp_path)

    def away(*_: object) -> None:
        raise PassingFault("the store is away")

    monkeypatch.setattr(run, "write", away)
    with Meter(run, "filter"):
        pass
    assert "not recorded: the store is away" in capsys.readouterr().err


def test_a_damaged_record_is_named(tmp_path: Path):
    run = open_store(tmp_path)
    run.write("costs/filter/x-1.json", b"{")
    with pytest.raises(BadInput, match="costs/filter/x-1.json: not a record of costs"):
        read_all(run)


def test_the_last_record_of_a_pod_is_found_by_its_name(tmp_path: Path):
    run = open_store(tmp_path)
    for pod, began in (("a-server", 1), ("a-server", 200), ("a-server-2", 300)):
        write(run, Record(step="serve", pod=pod, began=began, seen=began + 1))
    found = of_pod(run, "serve", "a-server")
    assert found is not None and found.began == 200
    assert of_pod(run, "serve", "b") is None

"""What a run cost, on the page, the card, in the workflow's outputs and in the notice of its end."""

import re
import runpy
import time
from pathlib import Path

import pytest

from spec.cluster import notice
from spec.costs.budget import Budget, write_budget
from spec.costs.records import Record, write
from spec.report import card, page
from spec.report.evidence import gather
from spec.report.figures import figures
from tests.runs import make_run

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path: Path):
    store, now = make_run(tmp_path / "run"), time.time()
    write(store, Record(step="filter", pod="f", cpus=2, began=now - 9000, seen=now - 5400, over=True))
    write(store, Record(step="train", pod="w", gpus=8, kind="H100", cpus=32, began=now - 5400, seen=now - 1800))
    return store


def test_page_and_card_have_it_by_step_and_money_where_it_is_priced(run):
    html, text = page.render(gather(run)), card.render(gather(run))
    for told in (html, text):
        assert re.search(r"filter\W.*?0\.0000 GPU-hours; 2 CPU-hours", told, re.DOTALL)
        assert re.search(r"together\W.*?8\.00 GPU-hours; 34 CPU-hours", told, re.DOTALL)
        assert "EUR" not in told
    write_budget(run, Budget(per_gpu_hour={"H100": 2.5}, currency="EUR"))
    for told in (page.render(gather(run)), card.render(gather(run))):
        assert "8.00 GPU-hours, 20.00 EUR" in told


def test_what_is_used_after_the_draft_was_measured_changes_no_page(run):
    before = page.render(gather(run)), card.render(gather(run))
    write(run, Record(step="publish", pod="p", cpus=2, began=time.time() + 5, seen=time.time() + 50))
    assert (page.render(gather(run)), card.render(gather(run))) == before


def test_without_records_nothing_is_said_of_it(tmp_path: Path):
    store = make_run(tmp_path / "bare")
    assert "GPU-hours" not in page.render(gather(store)) + card.render(gather(store))


def test_the_workflow_s_outputs_are_numbers_or_none(run, tmp_path: Path):
    write_budget(run, Budget(per_gpu_hour={"*": 0.5}))
    runpy.run_path(str(ROOT / "tools/show_report.py"))["main"](run.url, tmp_path / "page.html", tmp_path / "figures")
    found = {path.name: path.read_text() for path in (tmp_path / "figures").iterdir()}
    assert found == figures(gather(run))
    assert (found["gpu-hours"], found["cost"], found["rows"]) == ("8.0000", "4.0000", "36")
    assert (
        found["accept-length"] == "1.7453" and found["train-step-seconds"] == "none"
    )  # runs of before have no seconds


def test_the_notice_has_the_cost_of_the_whole_run(run):
    write_budget(run, Budget(per_gpu_hour={"*": 2}, currency="EUR"))
    given = {"parameters": [{"name": "run", "value": run.url}]}
    node = {"id": "1", "name": "a", "displayName": "preflight", "type": "Pod", "phase": "Succeeded", "inputs": given}
    found = notice.message({"metadata": {"name": "a"}, "status": {"nodes": {"1": node}}})
    assert found["cost"]["gpu_hours"] == 8 and found["cost"]["money"] == 16 and found["cost"]["currency"] == "EUR"
    assert "8.00 GPU-hours, 16.00 EUR" in found["text"]

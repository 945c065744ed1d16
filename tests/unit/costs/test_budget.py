"""Prices and a cap: what is no number is refused, and what a cap leaves is counted."""

from pathlib import Path

import pytest

from spec.costs.budget import KEY, Budget, Cap, check_cap, parse_prices, read_budget, write_budget
from spec.costs.records import Record, read_all, write
from spec.costs.sums import Spent
from spec.errors import BadInput
from spec.storage import open_store

SPENT = Spent(100, {"H100": 7200, "A100": 3600})


def test_money_is_by_kind_of_gpu_and_none_where_a_kind_has_no_price():
    assert Budget(per_gpu_hour={"H100": 2.5, "A100": 1}).money(SPENT) == 6
    assert Budget(per_gpu_hour={"H100": 2.5, "*": 2}).money(SPENT) == 7
    assert Budget(per_gpu_hour={"H100": 2.5}).money(SPENT) is None
    assert Budget().money(SPENT) is None
    assert Budget(per_gpu_hour={"*": 2}, currency="EUR").told(SPENT) == "3.00 GPU-hours, 6.00 EUR"
    assert Budget().told(SPENT) == "3.00 GPU-hours"
    assert Budget(per_gpu_hour={"H100": 2.5}).told(SPENT) == "3.00 GPU-hours, no price for A100"


@pytest.mark.parametrize("text", ["two", "[2]", "2.5", '{"*": "2.5"}', '{"*": -1}', '{"*": true}', '{"*": NaN}'])
def test_a_price_that_is_no_number_is_refused(text):
    with pytest.raises(BadInput):
        parse_prices(text)


def test_prices_are_read():
    assert parse_prices("") == parse_prices("{}") == {}
    assert parse_prices('{"H100": 2.5, "*": 3}') == {"H100": 2.5, "*": 3}


def test_a_run_without_a_budget_has_an_empty_one_and_it_is_no_record(tmp_path: Path):
    run = open_store(tmp_path)
    assert read_budget(run) == Budget()
    write_budget(run, Budget(per_gpu_hour={"*": 2}, currency="EUR", max_gpu_hours=3))
    assert read_budget(run).max_gpu_hours == 3 and read_all(run) == []
    run.write(KEY, b'{"max_gpu_hours": "many"}')
    with pytest.raises(BadInput, match="costs/budget.json: .*number"):
        read_budget(run)


def test_a_cap_counts_what_the_run_used_before_and_what_is_held_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = open_store(tmp_path)
    monkeypatch.setattr("spec.costs.budget.process_began", lambda: 10_000.0)
    write(run, Record(step="serve", pod="s", gpus=1, began=0, seen=3600, over=True))
    write(run, Record(step="train", pod="w", gpus=8, began=9900, seen=10_500, of_cluster=True))  # by a follower
    write_budget(run, Budget(max_gpu_hours=3))
    cap = Cap.of(run, gpus=8)
    monkeypatch.setattr("time.time", lambda: 10_000.0 + 700)
    assert cap.used() == pytest.approx((3600 + 8 * 100 + 8 * 700) / 3600)
    assert not cap.would_pass(99) and cap.would_pass(101)
    assert "2.78 GPU-hours are used of 3; saved step 4" in str(cap.refusal("saved step 4"))


def test_servers_that_live_on_count_for_a_step_without_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = open_store(tmp_path)
    write(run, Record(step="serve", pod="s", gpus=8, began=10_000, seen=10_060, of_cluster=True, lives_on=True))
    check_cap(run, "no cap")
    write_budget(run, Budget(max_gpu_hours=2))
    monkeypatch.setattr("time.time", lambda: 10_000.0 + 899)
    check_cap(run, "below it")
    monkeypatch.setattr("time.time", lambda: 10_000.0 + 900)
    with pytest.raises(BadInput, match="max-gpu-hours: 2.00 GPU-hours are used of 2; 7 answers are kept; submit"):
        check_cap(run, "7 answers are kept")


def test_without_a_cap_nothing_passes_it(tmp_path: Path):
    run = open_store(tmp_path)
    write(run, Record(step="train", pod="w", gpus=8, began=0, seen=10_000))
    assert not Cap.of(run, gpus=8).would_pass(1e9)

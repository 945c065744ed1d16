"""GPU-seconds and CPU-seconds by step, of every pod once."""

from typing import Any

import pytest

from spec.costs.records import Record
from spec.costs.sums import Spent, by_step, total


def record(step: str, pod: str, began: float, seen: float, **rest: Any) -> Record:
    return Record(step=step, pod=pod, began=began, seen=seen, **rest)


def test_a_pod_counts_with_what_it_asked_for_over_all_submissions():
    first = record("train", "a-train-1-worker-0", 100, 160, gpus=8, kind="H100", cpus=32, over=True)
    second = record("train", "b-train-1-worker-0", 900, 910, gpus=8, kind="H100", cpus=32, over=True)
    filtered = record("filter", "f", 10, 30, cpus=0.5)
    steps = by_step([second, filtered, first])
    assert list(steps) == ["filter", "train"]
    assert steps["filter"] == Spent(10, {})
    assert steps["train"] == Spent(70 * 32, {"H100": 70 * 8})
    assert total(steps) == Spent(10 + 70 * 32, {"H100": 560})


def test_nodes_of_two_kinds_are_told_apart():
    records = [record("train", f"w{i}", 0, 3600, gpus=2, kind=kind) for i, kind in enumerate(("H100", "A100", "H100"))]
    assert total(by_step(records)).gpu_seconds == {"H100": 2 * 2 * 3600, "A100": 2 * 3600}
    assert total(by_step(records)).gpu_hours == 6


def test_a_killed_pod_counts_to_when_it_was_last_seen():
    assert by_step([record("train", "w", 0, 47, gpus=1)])["train"].gpu_seconds == {"": 47}


def test_two_who_saw_the_same_pod_count_it_once_with_what_the_cluster_says():
    own = record("train", "w", 20, 100, gpus=8, kind="H100", cpus=64)
    follower = record("train", "w", 5, 90, gpus=8, cpus=32, of_cluster=True)
    again = record("train", "w", 5, 104, gpus=8, cpus=32, of_cluster=True)  # another follower, of the same pod
    for order in ([own, follower, again], [again, follower, own]):
        assert by_step(order)["train"] == Spent(99 * 32, {"H100": 99 * 8})


def test_two_pods_of_one_name_that_do_not_overlap_are_two():
    records = [record("train", "w", 0, 10, gpus=1), record("train", "w", 100, 110, gpus=1)]
    assert by_step(records)["train"].gpu_seconds == {"": 20}


@pytest.mark.parametrize(("until", "seconds"), [(None, 30), (20, 20), (40, 30), (-5, None)])
def test_what_came_later_does_not_count(until, seconds):
    found = by_step([record("filter", "f", 0, 30, cpus=1, over=True)], until)
    assert found == ({} if seconds is None else {"filter": Spent(seconds, {})})


def test_a_server_is_there_until_its_end_and_a_figure_of_then_stays_what_it_was():
    ready = record("serve", "s", 0, 60, gpus=1, lives_on=True, of_cluster=True)
    ended = ready.model_copy(update={"seen": 500, "over": True})
    assert by_step([ready], 300) == by_step([ended], 300) == {"serve": Spent(0, {"": 300})}
    assert by_step([ready])["serve"].gpu_seconds == {"": 60} and by_step([ended])["serve"].gpu_seconds == {"": 500}

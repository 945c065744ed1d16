"""A run from prompts to a published draft; the same run again; and a draft that misses its bar."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spec.conversations.shards import find_shards, read_rows
from spec.drafts.publish import fetch
from spec.storage.markers import Marker, read_marker
from tests.e2e.cluster import Workflow, bucket, submit, url

RUN = "good"
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def workflow() -> Workflow:
    return submit(RUN)


def test_a_run_ends_with_a_published_draft(workflow: Workflow, tmp_path: Path, record_property: Record) -> None:
    begun = time.monotonic()
    assert workflow.wait(1800) == "Succeeded", workflow.message
    seconds = workflow.seconds()
    steps = ", ".join(f"{step} {taken:.0f} s" for step, taken in seconds.items())
    record_property("steps", f"{steps}; pods {sum(seconds.values()):.0f} s of {time.monotonic() - begun:.0f} s")
    with bucket():
        draft = fetch(url(RUN, "drafts"), tmp_path / "draft", say=lambda line: None)
    assert draft.files


def test_its_report_shows_more_than_an_untrained_draft_and_equal_tokens(workflow: Workflow) -> None:
    report = marker("run/report/report.json").facts
    assert report["speculative"]["accept_length"] > report["offline"]["untrained_accept_length"]
    assert report["speculative"]["tokens_equal_baseline"]


def test_two_pods_trained_together(workflow: Workflow) -> None:
    with bucket() as store:
        run = store.at(f"{RUN}/run")
        markers = [entry.key for entry in run.list("checkpoints") if entry.key.endswith("/checkpoint.json")]
        newest = read_marker(run, markers[-1])
    assert newest is not None and newest.facts["ranks"] == 2


def test_each_prompt_is_there_once(workflow: Workflow) -> None:
    with bucket() as store:
        run = store.at(f"{RUN}/run")
        ids = [row["id"] for shard, found in find_shards(run).items() for row in read_rows(run, shard, found)]
    assert len(ids) == len(set(ids)) == 80


def test_nothing_of_it_is_left_running(workflow: Workflow) -> None:
    assert workflow.made() == []


def test_the_same_run_again_does_only_what_is_missing(workflow: Workflow) -> None:
    again = submit(RUN)
    assert again.wait(600) == "Succeeded", again.message
    assert not again.ran() & {"serve", "serve-draft", "serve-baseline", "train", "prove"}, again.ran()


def test_a_draft_below_the_bar_is_not_published_and_the_message_says_why(workflow: Workflow) -> None:
    refused = submit(RUN, min_accept_length="9", destination=url(RUN, "refused"))
    assert refused.wait(600) == "Failed"
    assert "below 9" in refused.message, refused.message
    with bucket() as store:
        assert store.list(f"{RUN}/refused") == []


def marker(key: str) -> Marker:
    with bucket() as store:
        found = read_marker(store, f"{RUN}/{key}")
    assert found is not None
    return found

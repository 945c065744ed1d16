"""A run from prompts to a published draft."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spec.conversations.shards import find_shards, read_rows
from spec.publishing.drafts import fetch
from spec.storage.markers import Marker, read_marker
from tests.e2e.cluster import Workflow, bucket, get, kubectl, url
from tests.e2e.conftest import GOOD

Record = Callable[[str, object], None]


def test_a_run_ends_with_a_published_draft(good: Workflow, tmp_path: Path, record_property: Record) -> None:
    begun = time.monotonic()
    assert good.wait(1800) == "Succeeded", good.message
    seconds = good.seconds()
    steps = ", ".join(f"{step} {taken:.0f} s" for step, taken in seconds.items())
    record_property("steps", f"{steps}; pods {sum(seconds.values()):.0f} s of {time.monotonic() - begun:.0f} s")
    with bucket():
        draft = fetch(url(GOOD, "drafts"), tmp_path / "draft", say=lambda line: None)
    assert draft.files


def test_its_report_shows_more_than_an_untrained_draft_and_equal_tokens(good: Workflow) -> None:
    report = marker("run/report/report.json").facts
    assert report["speculative"]["accept_length"] > report["offline"]["untrained_accept_length"]
    assert report["speculative"]["tokens_equal_baseline"]


def test_two_pods_trained_together(good: Workflow) -> None:
    with bucket() as store:
        run = store.at(f"{GOOD}/run")
        markers = [entry.key for entry in run.list("checkpoints") if entry.key.endswith("/checkpoint.json")]
        newest = read_marker(run, markers[-1])
    assert newest is not None and newest.facts["ranks"] == 2


def test_each_prompt_is_there_once(good: Workflow) -> None:
    with bucket() as store:
        run = store.at(f"{GOOD}/run")
        ids = [row["id"] for shard, found in find_shards(run).items() for row in read_rows(run, shard, found)]
    assert len(ids) == len(set(ids)) == 80


def test_prometheus_reads_its_figures_from_argo_under_labels_of_one_s_own(good: Workflow) -> None:
    (controller,) = get("pods", "--selector=app=workflow-controller", namespace="argo")["items"]
    at = f"/api/v1/namespaces/argo/pods/https:{controller['metadata']['name']}:9090/proxy/metrics"
    lines = [line for line in kubectl("get", f"--raw={at}", namespace=None).splitlines() if 'team="e2e"' in line]
    figures = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert figures["argo_workflows_sgl_spec_rows"] == 80
    report = marker("run/report/report.json").facts["speculative"]["accept_length"]
    assert figures["argo_workflows_sgl_spec_accept_length"] == pytest.approx(report, abs=0.01)


def test_nothing_of_it_is_left_running(good: Workflow) -> None:
    assert good.made() == []


def marker(key: str) -> Marker:
    with bucket() as store:
        found = read_marker(store, f"{GOOD}/{key}")
    assert found is not None
    return found

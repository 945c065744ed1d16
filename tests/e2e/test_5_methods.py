"""A draft of another method, of the same answers, swept and published beside the first one: each has its own latest."""

from pathlib import Path

import pytest

from spec.methods import METHODS
from spec.publishing.drafts import fetch, place_of
from spec.storage.markers import read_marker
from tests.e2e.cluster import Workflow, bucket, copy_run, submit, url
from tests.e2e.conftest import GOOD, UNTRAINED

RUN = "dspark"
OPTIONS = "mask_token_id=319 epochs=20 optimizer.lr=3.0e-3 lr_scheduler.num_warmup_steps=5 save_every=20"


@pytest.fixture(scope="module")
def dspark(good: Workflow) -> Workflow:
    good.wait(1800)
    copy_run(GOOD, RUN, *UNTRAINED)
    config = "spec/configs/smollm2/135M_dspark.yaml"
    sweep = {"sweep_drafts": "1", "sweep_loads": "1", "sweep_options": "--prompts 2 --rounds 1 --max-new-tokens 16"}
    return submit(RUN, config=config, destination=url(GOOD, "drafts"), train_options=OPTIONS, **sweep)


def test_a_dspark_draft_is_published_beside_the_first_one(dspark: Workflow, tmp_path: Path) -> None:
    assert dspark.wait(1800) == "Succeeded", dspark.message
    with bucket():
        for name in ("eagle3", "dspark"):
            method = METHODS[name]
            draft = fetch(place_of(url(GOOD, "drafts"), method), tmp_path / name, say=lambda line: None)
            assert draft.facts["config"]["architectures"] == [method.architecture]
    assert dspark.made() == []


def test_it_was_proven_by_the_server_as_its_method(dspark: Workflow) -> None:
    with bucket() as store:
        report = read_marker(store, f"{RUN}/run/report/report.json")
    assert report is not None and report.facts["speculative"]["tokens_equal_baseline"]
    assert report.facts["speculative"]["accept_length"] > report.facts["offline"]["untrained_accept_length"]


def test_the_sweep_says_in_the_published_draft_how_to_serve_it(dspark: Workflow) -> None:
    dspark.wait(1800)
    with bucket() as store:
        sweep, draft = (read_marker(store, f"{RUN}/run/{name}") for name in ("report/sweep.json", "draft/draft.json"))
        costs = [entry.key for entry in store.list(f"{RUN}/run/costs/serve")]
    assert sweep is not None and [(one["drafts"], one["concurrency"]) for one in sweep.facts["measured"]] == [(1, 1)]
    assert draft is not None and draft.facts["serving"]["speed_up"].keys() == {"1"}
    assert len(costs) == 4  # the evaluation's two and the sweep's two

"""A draft that is worse than the published one: measured beside it, refused, and the old one stays."""

import json

from tests.e2e.cluster import Workflow, bucket, copy_run, submit, url
from tests.e2e.conftest import GOOD, UNTRAINED

OPTIONS = "draft_vocab_size=128 epochs=1 optimizer.lr=1.0e-9 lr_scheduler.num_warmup_steps=1 save_every=20"


def test_a_draft_worse_than_the_published_one_is_not_published(good: Workflow) -> None:
    assert good.wait(1800) == "Succeeded", good.message
    with bucket() as store:
        before = store.read(f"{GOOD}/drafts/latest")
    copy_run(GOOD, "regressed", *UNTRAINED)
    workflow = submit(
        "regressed",
        destination=url(GOOD, "drafts"),
        max_regression="0.02",
        min_accept_length="1",
        train_options=OPTIONS,
    )
    assert workflow.wait(1800) == "Failed"
    version = json.loads(before)["version"]
    assert f"of version {version}, which is published there" in workflow.message, workflow.message
    assert {"bring-published", "prove"} <= workflow.ran() and "publish" not in workflow.ran(), workflow.ran()
    with bucket() as store:
        assert store.read(f"{GOOD}/drafts/latest") == before

"""What cannot succeed is refused by the first step, with a message that names the parameter, and nothing is begun."""

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Workflow, bucket, kubectl, submit, until
from tests.e2e.conftest import SECRET, make_secret

WRONG = {
    "no shards": ({"shards": "0"}, "shards"),
    "no number of nodes": ({"nodes": "two"}, "nodes"),
    "an unknown model": ({"model": "s3://sgl-spec/e2e/nothing"}, "parameter model"),
    "a bucket that does not exist": ({"destination": "s3://no-such-bucket/drafts"}, "parameter destination"),
    "a method's value that is none": ({"train_options": "steps=0"}, "parameter train-options: config: steps=0"),
    "more GPUs than the quota": ({"nodes": "2", "gpus_per_node": "8"}, "gpus-per-node"),
}
QUOTA = """
apiVersion: v1
kind: ResourceQuota
metadata: {name: gpus}
spec: {hard: {requests.nvidia.com/gpu: "2"}}
"""


@pytest.fixture(scope="module")
def submitted() -> Iterator[dict[str, Workflow]]:
    """All of them at once: each is over in seconds."""
    kubectl("apply", "--filename=-", given=QUOTA)
    until("the quota is counted", lambda: kubectl("get", "quota", "gpus", "--output=jsonpath={.status.hard}"), 60)
    try:
        yield {name: submit(f"bad{number}", **given) for number, (name, (given, _)) in enumerate(WRONG.items())}
    finally:
        kubectl("delete", "quota", "gpus")


@pytest.mark.parametrize("name", WRONG)
def test_is_refused(name: str, submitted: dict[str, Workflow]) -> None:
    _refused(submitted[name], WRONG[name][1])


def test_a_missing_secret_is_refused(submitted: dict[str, Workflow]) -> None:
    for workflow in submitted.values():  # these have need of it
        workflow.wait(300)
    kubectl("delete", "secret", SECRET)
    try:
        workflow = submit("bad-secret")
        workflow.wait(300)
    finally:
        make_secret()
    _refused(workflow, SECRET)


def _refused(workflow: Workflow, naming: str) -> None:
    assert workflow.wait(300) == "Failed"
    assert naming in workflow.message, workflow.message
    assert workflow.ran() <= {"preflight"}
    assert workflow.made() == []
    with bucket() as store:
        assert store.list(workflow.run) == []

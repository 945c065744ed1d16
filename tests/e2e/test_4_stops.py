"""A workflow stopped by hand and submitted again; one terminated, of which nothing is left running."""

import pytest

from spec.conversations.shards import find_shards, folders_present, read_rows
from tests.e2e.cluster import Workflow, argo, bucket, kubectl, submit, until

ROWS = 400


@pytest.fixture
def filtering(request: pytest.FixtureRequest) -> Workflow:
    """A workflow in the middle of filtering."""
    name = request.node.name.removeprefix("test_")[:4].strip("_")
    workflow = submit(f"stop-{name}", filter_options=f"--keep-truncated --limit {ROWS}")

    def begun() -> bool:
        with bucket() as store:
            return len(folders_present(store.at(f"stop-{name}/run"))) == 2

    until("both shards have answers", begun, 600)
    return workflow


def test_stopped_and_submitted_again(filtering: Workflow) -> None:
    argo("stop", filtering.name)
    assert filtering.wait(300) == "Failed"
    assert "Stop" in filtering.message, filtering.message
    assert filtering.made() == []
    run = filtering.name.split("-")[2]
    again = submit(f"stop-{run}", filter_options=f"--keep-truncated --limit {ROWS}")
    assert again.wait(1800) == "Succeeded", again.message
    with bucket() as store:
        found = find_shards(store.at(f"stop-{run}/run"))
        ids = [
            row["id"]
            for shard, marker in found.items()
            for row in read_rows(store.at(f"stop-{run}/run"), shard, marker)
        ]
    assert len(ids) == len(set(ids)) == ROWS


def test_terminated(filtering: Workflow) -> None:
    argo("terminate", filtering.name)
    assert filtering.wait(300) == "Failed"
    kubectl("create", "job", "--from=cronjob/sweep", f"sweep-{filtering.name}")  # else within two minutes
    until("nothing of it is left", lambda: not filtering.made(), 180)

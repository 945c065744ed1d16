"""A deleted workflow takes its artifacts and logs along, and goes whatever becomes of them."""

from tests.e2e.cluster import Workflow, bucket, kubectl, start, until, url
from tests.e2e.conftest import GOOD
from tests.e2e.harm import store_gone


def reported(good: Workflow) -> Workflow:
    """A workflow of one step, which has saved an artifact and a log."""
    good.wait(1800)
    workflow = start("report", run=url(GOOD, "run"))
    assert workflow.wait(300) == "Succeeded", workflow.message
    return workflow


def test_its_artifacts_and_logs_go_with_it(good: Workflow) -> None:
    workflow = reported(good)
    with bucket("artifacts") as store:
        assert store.list(workflow.name), "it has saved nothing"
        kubectl("delete", "workflow", workflow.name, "--timeout=300s")
        assert store.list(workflow.name) == []
        assert store.list(good.name), "another's are gone too"


def test_it_goes_while_the_store_is_gone(good: Workflow) -> None:
    workflow = reported(good)
    with store_gone():
        kubectl("delete", "workflow", workflow.name, "--wait=false")
        names = "--output=jsonpath={.items[*].metadata.name}"
        until("it is gone", lambda: workflow.name not in kubectl("get", "workflows", names), 420)

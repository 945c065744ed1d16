"""What an operator relies on: a step that no node takes ends and says why; logs are kept."""

from tests.e2e.cluster import SESSION, Workflow, bucket, setting, start, sweep, until, url
from tests.e2e.conftest import GOOD


def test_a_step_that_no_node_takes_ends_and_says_what_lacks(good: Workflow) -> None:
    good.wait(1800)
    values = {"run": url(GOOD, "run"), "target": "/models/none", "min_accept_length": "1"}
    workflow = start("evaluate", cpu="900", cpu_limit="900", **values)
    pending = ("Pending",)
    until("its pod waits for a node", lambda: workflow.pods("", pending), 120, of=workflow)
    with setting(step_pending_seconds="1"):
        until("it is older than a second", lambda: workflow.pods("", pending), 10, of=workflow)
        sweep()
    assert workflow.wait(120) == "Failed"
    messages = [node.get("message", "") for node in workflow.nodes() if node["type"] == "Pod"]
    assert len(messages) == 1, f"it was tried again: {messages}"
    assert "Insufficient cpu" in messages[0] and "exit code 2" in messages[0], messages


def test_logs_of_every_step_of_the_servers_and_of_the_trainers_are_kept(good: Workflow) -> None:
    good.wait(1800)
    with bucket("artifacts") as store:
        archived = [entry.key for entry in store.list(good.name) if entry.key.endswith("/main.log")]
    for step in ("filter", "prepare", "extract", "evaluate", "publish", "report"):
        assert any(f"-{step}-" in key for key in archived), f"{step}: {archived}"
    assert not any("-preflight-" in key for key in archived)
    with bucket() as store:
        kept = {entry.key.rpartition("/")[2] for entry in store.list(f"{GOOD}/run/logs")}
    assert {f"{good.name}-train-1-worker-0.log", f"{good.name}-train-1-worker-1.log"} <= kept, (SESSION, kept)
    for server in ("server", "draft-server", "baseline"):
        assert any(name.startswith(f"{good.name}-{server}-") for name in kept), kept

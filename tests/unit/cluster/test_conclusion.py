"""A workflow's message is the cause in one line, and its exit code that of the step that failed."""

from typing import Any

import pytest

from spec.cluster.conclusion import conclude
from spec.errors import BadInput, BelowBar, PassingFault, SpecError, Stopped


def workflow(*nodes: dict[str, Any], pipeline: str = "Failed", **spec: Any) -> dict[str, Any]:
    top = {"id": "top", "name": "run[0].pipeline", "displayName": "pipeline", "type": "DAG", "phase": pipeline}
    found = {node["id"]: node for node in (top, *nodes)}
    return {"metadata": {"name": "run"}, "spec": spec, "status": {"nodes": found}}


def pod(name: str, message: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "name": name, "displayName": name, "type": "Pod", "phase": "Failed", "message": message} | more


@pytest.mark.parametrize("code, kind", [(2, BadInput), (3, BelowBar), (75, PassingFault), (143, Stopped)])
def test_a_failed_step_s_last_error_is_the_message(code: int, kind: type[SpecError]):
    log = f"main: Error (exit code {code}): a table\nwith lines\nerror: the draft is weak"
    with pytest.raises(kind, match="^evaluate: the draft is weak$"):
        conclude(workflow(pod("evaluate", log)))


def test_a_step_without_words_names_its_exit_code():
    with pytest.raises(PassingFault, match=r"filter: OOMKilled \(exit code 137\), see its log"):
        conclude(workflow(pod("filter", "OOMKilled (exit code 137)")))


def test_the_last_of_several_attempts_says_why():
    attempts = [pod("a", "Error (exit code 75): error: first"), pod("b", "Error (exit code 2): error: last")]
    retry = pod("prepare", "No more retries left") | {"type": "Retry", "children": ["a", "b"]}
    with pytest.raises(BadInput, match="^prepare: last$"):
        conclude(workflow(*attempts, retry))


def test_a_pipeline_that_never_started_is_no_success():
    with pytest.raises(PassingFault, match="never started"):
        conclude({"metadata": {"name": "run"}, "status": {}})


def test_a_stopped_one_says_that_it_goes_on():
    with pytest.raises(Stopped, match="submit the same run again"):
        conclude(workflow(pipeline="Failed", shutdown="Stop"))


def test_a_step_that_argo_could_not_run_is_no_success_whatever_argo_says_of_the_whole():
    serve = {
        "id": "serve",
        "displayName": "serve",
        "type": "Steps",
        "phase": "Error",
        "message": "no output",
        "name": "x",
    }
    with pytest.raises(PassingFault, match="serve: no output"):
        conclude(workflow(serve, pipeline="Succeeded"))


def test_success_is_said():
    assert "succeeded" in conclude(workflow(pipeline="Succeeded"))

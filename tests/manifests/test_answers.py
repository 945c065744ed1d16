"""What the answers are asked with: each parameter of the pipeline reaches preflight and every filter pod."""

import re

import pytest
import yaml

from tests.manifests.commands import _options
from tests.manifests.objects import ROOT, Json


def template(name: str, kind: str) -> Json:
    (found,) = (its for its in load(name)["spec"]["templates"] if its["name"] == kind)
    return found


def load(name: str) -> Json:
    return yaml.safe_load((ROOT / "workflows" / f"{name}.yaml").read_text())


@pytest.mark.parametrize(
    "name", ["dataset-name", "dataset-split", "weights", "parallel", "temperature", "max-tokens", "turns"]
)
def test_a_parameter_of_the_answers_reaches_every_step_that_reads_it(name: str) -> None:
    pipeline = load("pipeline")["spec"]["arguments"]["parameters"]
    assert [its["description"] for its in pipeline if its["name"] == name]
    tasks = {task["name"]: task for task in template("pipeline", "pipeline")["dag"]["tasks"]}
    for step in ("preflight", "filter"):
        given = {its["name"]: its["value"] for its in tasks[step]["arguments"]["parameters"]}
        assert given[name] == f"{{{{workflow.parameters.{name}}}}}"
        its = template(step, step)
        assert name in [parameter["name"] for parameter in its["inputs"]["parameters"]]
        assert f"--{name}={{{{inputs.parameters.{name}}}}}" in its["container"]["args"]


def test_answers_of_every_turn_are_asked_for_unless_a_run_says_otherwise() -> None:
    for name, parameters in (
        ("pipeline", load("pipeline")["spec"]["arguments"]["parameters"]),
        *((step, template(step, step)["inputs"]["parameters"]) for step in ("preflight", "filter")),
    ):
        assert [its["value"] for its in parameters if its["name"] == "turns"] == ["all"], name


def test_the_words_that_the_pipeline_proposes_for_filter_are_options_of_it() -> None:
    parameters = load("pipeline")["spec"]["arguments"]["parameters"]
    (options,) = (its for its in parameters if its["name"] == "filter-options")
    proposed = set(re.findall(r"--[a-z-]+", options["description"]))
    wanted = {"--samples", "--chat-template-kwargs", "--fraction", "--keep-sampling", "--leave-out", "--glob"}
    assert wanted <= proposed <= _options("tools/filter_data.py")

"""A kind that Kueue would leave alone is refused by name; where nobody may look, one line says what to check."""

import pytest
import yaml

from spec.cluster.queues import check_queue
from spec.errors import BadInput, PassingFault
from tests.unit.cluster.fake import FakeCluster


class Configured(FakeCluster):
    def __init__(self, text: str | None):
        super().__init__()
        self.text = text

    def config_map(self, name: str, namespace: str) -> dict[str, str]:
        assert (name, namespace) == ("kueue-manager-config", "kueue-system")
        if self.text is None:
            raise BadInput("configmap: the API server refuses (Forbidden)")
        return {"controller_manager_config.yaml": self.text}


def listing(*frameworks: str) -> str:
    return yaml.safe_dump({"integrations": {"frameworks": list(frameworks)}})


def test_all_that_a_run_makes_is_queued():
    assert "queues" in check_queue(Configured(listing("pod", "deployment", "kubeflow.org/pytorchjob")), "gpus")


@pytest.mark.parametrize(
    "text", [listing("batch/job", "pod", "deployment"), "integrations:\n"], ids=["left out", "none"]
)
def test_what_is_not_queued_is_refused_by_name(text: str):
    with pytest.raises(BadInput, match=r"setting queue.*kubeflow\.org/pytorchjob.*integrations\.frameworks"):
        check_queue(Configured(text), "gpus")


@pytest.mark.parametrize("text", [None, "- no mapping", "{"], ids=["forbidden", "a list", "no YAML"])
def test_a_configuration_that_cannot_be_read_is_left_to_the_reader(text: str | None):
    assert "check that integrations.frameworks" in check_queue(Configured(text), "gpus")


def test_an_api_server_that_is_away_does_not_refuse_a_run():
    class Away(FakeCluster):
        def config_map(self, name: str, namespace: str) -> dict[str, str]:
            raise PassingFault("the API server cannot be reached")

    assert "check that" in check_queue(Away(), "gpus")


def test_without_a_queue_nothing_is_asked():
    assert check_queue(FakeCluster(), "") == ""

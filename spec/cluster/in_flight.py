"""Which workflows are not over, and whether one of them names a run or a version: what it names may be needed."""

import json
import re
from collections.abc import Callable

from spec.cluster.api import Cluster
from spec.cluster.cleanup import OVER
from spec.cluster.conclusion import nodes_of


def naming(cluster: Cluster) -> Callable[[str], str]:
    """A look-up: the name of a workflow in flight that has a text anywhere in what it was given or found; "" for none.

    Asks the cluster once. Anywhere: the run of a CronWorkflow is a template until its first step is there, and one that
    waits for its turn has what its template gives by default in its status alone.
    """
    running = {}
    for workflow in cluster.find("workflow", ""):
        status = workflow.get("status") or {}
        if status.get("phase") not in OVER:
            told = [workflow.get("spec"), status | {"nodes": nodes_of(workflow)}]
            running[workflow["metadata"]["name"]] = json.dumps(told)

    def find(text: str) -> str:
        whole = re.compile(rf"(?<![\w.-]){re.escape(text)}(?![\w.-])")
        return next((name for name, told in running.items() if whole.search(told)), "")

    return find

"""Ending what a workflow started besides its own pods: its servers and its training jobs.

Used between the steps (to free the servers' GPUs for training), at the end of a workflow, and by a CronJob for
workflows that ended without their exit handler (`argo terminate`, a deleted controller or Workflow). Owner references
do the rest once the Workflow itself is gone.
"""

import time

from spec.cluster import jobs, servers
from spec.cluster.api import WORKFLOW_LABEL, Cluster, Json
from spec.cluster.logs import Keeper
from spec.costs.pods import RUN, saw_server
from spec.errors import PassingFault, SpecError

SERVERS = ("deployment", "service")
ALL = (*SERVERS, "pytorchjob")
PODS = {  # the label that names whose they are, and which of their containers speaks
    "deployment": ("sgl-spec/server", servers.CONTAINER),
    "pytorchjob": ("training.kubeflow.org/job-name", jobs.CONTAINER),
}
LAST_WORDS = 30.0  # seconds until they are in the run, once their pods are gone
OVER = {"Succeeded", "Failed", "Error"}  # phases of a workflow


def end(cluster: Cluster, workflow: str, kinds: tuple[str, ...], *, patience: float, poll: float = 2.0) -> list[str]:
    """Delete what `workflow` made of these kinds and wait until their pods are gone; returns their names.

    Raises `PassingFault` if something is still there after `patience` seconds, or the API server does not answer.
    """
    selector = f"{WORKFLOW_LABEL}={workflow}"
    ended: set[str] = set()
    seen: dict[str, Json] = {}
    keepers: dict[str, Keeper | None] = {}
    deadline = time.monotonic() + patience
    while True:
        try:
            found = [(kind, item) for kind in kinds for item in cluster.find(kind, selector)]
            left = [(kind, item["metadata"]) for kind, item in found]
            for kind, item in found:
                name = f"{kind}/{item['metadata']['name']}"
                if kind == "deployment" and name not in seen:
                    saw_server(item, over=True)  # and once more when it is gone, unless this is killed before
                    seen[name] = item
                if kind in PODS and name not in keepers:
                    keepers[name] = _keep_logs(cluster, kind, item)
            for kind, metadata in left:
                ended.add(f"{kind}/{metadata['name']}")
                if "deletionTimestamp" not in metadata:
                    cluster.delete(kind, metadata["name"])
        except PassingFault:  # the last step of a workflow: an API server that is away for a moment must not fail it
            if time.monotonic() >= deadline:
                raise
        else:
            if not left:
                for server in seen.values():
                    saw_server(server, over=True)
                for keeper in filter(None, keepers.values()):
                    keeper.wait(LAST_WORDS)
                return sorted(ended)
            if time.monotonic() >= deadline:
                names = ", ".join(f"{kind}/{metadata['name']}" for kind, metadata in left)
                raise PassingFault(
                    f"{names}: still there {patience:.0f} s after being deleted; look at their pods' events"
                )
        time.sleep(poll)


def sweep(cluster: Cluster) -> list[str]:
    """Delete what workflows that are over, or gone, have left; returns its names. Does not wait."""
    swept = []
    for kind in ALL:
        for item in cluster.find(kind, WORKFLOW_LABEL):
            metadata = item["metadata"]
            if "deletionTimestamp" not in metadata and _is_over(cluster, metadata["labels"][WORKFLOW_LABEL]):
                if kind == "deployment":
                    saw_server(item, over=True)
                if kind in PODS:
                    _keep_logs(cluster, kind, item)
                cluster.delete(kind, metadata["name"])
                swept.append(f"{kind}/{metadata['name']}")
    return swept


def _keep_logs(cluster: Cluster, kind: str, item: Json) -> Keeper | None:
    """What its pods say goes with them: before that, into the run that it names."""
    url, (label, container) = (item["metadata"].get("annotations") or {}).get(RUN), PODS[kind]
    if not url:
        return None
    try:
        keeper = Keeper(cluster, url, f"{label}={item['metadata']['name']}", container)
        keeper.end()
    except SpecError as error:
        print(f"logs of {kind}/{item['metadata']['name']} are not kept: {error}", flush=True)
        return None
    return keeper


def _is_over(cluster: Cluster, workflow: str) -> bool:
    """A deleted one that Argo's finalizer still holds is: owner references would free its GPUs minutes later."""
    try:
        found = cluster.get("workflow", workflow)
    except FileNotFoundError:
        return True
    return "deletionTimestamp" in found["metadata"] or (found.get("status") or {}).get("phase") in OVER

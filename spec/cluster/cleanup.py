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
    seen: list[Json] = []  # the servers, recorded once more when they are gone, unless this is killed before
    keepers: list[Keeper] = []
    deadline = time.monotonic() + patience
    while True:
        try:
            found = [(kind, item) for kind in kinds for item in cluster.find(kind, selector)]
            left = [(kind, item["metadata"]) for kind, item in found]
            for kind, item in found:
                name = f"{kind}/{item['metadata']['name']}"
                if name not in ended:
                    keepers += _take_leave(cluster, kind, item)
                    if kind == "deployment":
                        seen.append(item)
                    ended.add(name)
            for kind, metadata in left:
                if "deletionTimestamp" not in metadata:
                    cluster.delete(kind, metadata["name"])
        except PassingFault:  # the last step of a workflow: an API server that is away for a moment must not fail it
            if time.monotonic() >= deadline:
                raise
        else:
            if not left:
                for server in seen:
                    saw_server(server, over=True)
                for keeper in keepers:
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
                _take_leave(cluster, kind, item)
                cluster.delete(kind, metadata["name"])
                swept.append(f"{kind}/{metadata['name']}")
    return swept


def _take_leave(cluster: Cluster, kind: str, item: Json) -> list[Keeper]:
    """What goes with it is kept before that, in the run that it names: a server's time, and what its pods say."""
    if kind == "deployment":
        saw_server(item, over=True)
    url = (item["metadata"].get("annotations") or {}).get(RUN)
    if not url or kind not in PODS:
        return []
    label, container = PODS[kind]
    try:
        keeper = Keeper(cluster, url, f"{label}={item['metadata']['name']}", container)
        keeper.end()
    except SpecError as error:
        print(f"logs of {kind}/{item['metadata']['name']} are not kept: {error}", flush=True)
        return []
    return [keeper]


def _is_over(cluster: Cluster, workflow: str) -> bool:
    """A deleted one that Argo's finalizer still holds is: owner references would free its GPUs minutes later."""
    try:
        found = cluster.get("workflow", workflow)
    except FileNotFoundError:
        return True
    return "deletionTimestamp" in found["metadata"] or (found.get("status") or {}).get("phase") in OVER

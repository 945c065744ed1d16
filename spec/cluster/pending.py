"""A limit for steps that no node takes, or whose image or volume does not come: Argo lets them be pending for ever.

Argo has none that fits: a template's `timeout` ends no pending pod of a step with retries, and says nothing of why. So
the sweep writes into such a pod's status what a kubelet writes of one that failed: exit code 2, which no step tries
again, and the scheduler's own words, which become the step's message and the workflow's.
"""

from spec.cluster import pods
from spec.cluster.api import Cluster, Json
from spec.costs.records import seconds_of
from spec.errors import BadInput

WORKFLOW = "workflows.argoproj.io/workflow"  # on every pod of Argo's
SELECTOR = f"sgl-spec/role=step,{WORKFLOW}"
QUEUE = "kueue.x-k8s.io/queue-name"
SETTING = "step-pending-seconds"


def end_pending(cluster: Cluster, *, seconds: float, now: float) -> list[str]:
    """Fail every step's pod that has been pending for longer than `seconds`; returns what each of them is told.

    Not one of a workflow that still works: others of it may hold the room that this one waits for. The time counts from
    the end of the last of them.
    """
    told, steps = [], cluster.pods(SELECTOR)
    working = {_workflow(pod) for pod in steps if pod["status"].get("phase") == "Running"}
    for pod in steps:
        since = pending_since(pod)
        if since is None or _workflow(pod) in working:
            continue
        since = max([since, *(end for other in steps if _workflow(other) == _workflow(pod) for end in _ends(other))])
        if now - since > seconds:
            words = f"{_why(pod)} (pending for {now - since:.0f} s, and {SETTING} is {seconds:.0f})"
            cluster.set_pod_status(pods.name(pod), failed(words))
            told.append(words)
    return told


def pending_since(pod: Json) -> float | None:
    """Seconds since 1970; None for a pod that is not pending, or that a queue of Kueue holds back.

    A queue may hold one for days, and nothing tells when it let it go: such a pod counts from when it has a node.
    """
    status, metadata = pod.get("status") or {}, pod["metadata"]
    if status.get("phase") != "Pending" or "deletionTimestamp" in metadata:
        return None
    if started := status.get("startTime"):
        return seconds_of(started)
    return None if (metadata.get("labels") or {}).get(QUEUE) else seconds_of(metadata["creationTimestamp"])


def failed(words: str) -> Json:
    """The status of a pod that ended with exit code 2 and these words.

    Argo reads the init containers first, and waits for the outputs of a `wait` that has not ended: hence all three.
    """
    end = {"exitCode": BadInput.exit_code, "reason": "Pending", "message": f"error: {words}"}
    of_all = {"image": "", "imageID": "", "ready": False, "restartCount": 0, "state": {"terminated": end}}
    statuses = [{"name": name, **of_all} for name in ("main", "wait")]
    return {"phase": "Failed", "initContainerStatuses": [], "containerStatuses": statuses}


def _why(pod: Json) -> str:
    why = pods.not_scheduled(pod) or pods.cannot_start(pod, pulls_count=True)
    return (
        why or f"{pods.name(pod)}: it does not start; `kubectl describe pod` says which volume or Secret it waits for"
    )


def _workflow(pod: Json) -> str:
    return pod["metadata"]["labels"][WORKFLOW]


def _ends(pod: Json) -> list[float]:
    """When its containers ended, of those that have."""
    ended = ((its.get("state") or {}).get("terminated") or {} for its in pods.containers(pod))
    return [seconds_of(its["finishedAt"]) for its in ended if its.get("finishedAt")]

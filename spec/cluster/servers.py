"""Waiting for a server: its Deployment is available once a token was generated (its readiness probe)."""

import time
from collections.abc import Callable

from spec.cluster import pods
from spec.cluster.api import Cluster, Json
from spec.errors import BadInput, PassingFault

CONTAINER = "server"
_CRASHES = 3  # a server that died this often at its start will not come up


def is_available(deployment: Json) -> bool:
    status = deployment.get("status") or {}
    current = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    return current and any(
        found["type"] == "Available" and found["status"] == "True" for found in status.get("conditions") or []
    )


def wait_until_ready(
    cluster: Cluster,
    name: str,
    *,
    patience: float,
    poll: float = 3.0,
    ready: Callable[[Json], bool] = is_available,
    judged: Callable[[Json], bool] = lambda pod: True,
) -> float:
    """Block until `deployment/name` is available, or what `ready` wants; returns the seconds it took.

    `judged`: which of its pods tell whether it will come up.

    Raises `BadInput` with the server's last words if it keeps crashing or can never start, and `PassingFault` if it is
    not ready after `patience` seconds: no node, or a model that takes longer to load.
    """
    begin = time.monotonic()
    said = 0.0
    while True:
        waited = time.monotonic() - begin
        try:
            deployment = cluster.get("deployment", name)
            if ready(deployment):
                return waited
            state = _judge(cluster, name, judged) or _refused(deployment) or "no pod yet"
        except (FileNotFoundError, PassingFault) as fault:
            state = str(fault)
        if waited >= patience:
            raise PassingFault(f"deployment/{name}: not ready after {waited:.0f} s: {state}")
        if waited - said >= 30:
            said = waited
            print(f"waiting for deployment/{name} ({waited:.0f} s): {state}", flush=True)
        time.sleep(poll)


def _refused(deployment: Json) -> str:
    """Why the cluster makes no pod of it: a quota or a policy, in the API server's own words; "" if it does."""
    conditions = (deployment.get("status") or {}).get("conditions") or []
    return next((found["message"] for found in conditions if found["type"] == "ReplicaFailure"), "")


def _judge(cluster: Cluster, name: str, judged: Callable[[Json], bool]) -> str:
    """What the pods are at ("" if there are none), or `BadInput` if they are at nothing that will end well."""
    state = ""
    for pod in filter(judged, cluster.pods(f"sgl-spec/server={name}")):
        if reason := pods.cannot_start(pod, pulls_count=False):
            raise BadInput(reason)
        for container in pods.containers(pod):
            up = container.get("ready")  # as an init container is that has ended well: it came up after all
            if container["restartCount"] >= _CRASHES and not up and not _may_pass(container):
                raise BadInput(
                    f"{pods.name(pod)}: {container['name']} crashed {container['restartCount']} times; "
                    f"{_why(cluster, pod, container)}"
                )
        state = pods.not_scheduled(pod) or pods.cannot_start(pod, pulls_count=True) or _phase(pod)
    return state


def _may_pass(container: Json) -> bool:
    """It ended with a passing fault: the draft could not be fetched from a store that is away."""
    return any(end["exitCode"] == PassingFault.exit_code for end in pods.ends(container))


def _why(cluster: Cluster, pod: Json, container: Json) -> str:
    """Its last words; one that the kernel killed has none."""
    name = container["name"]
    if any(end.get("reason") == "OOMKilled" for end in pods.ends(container)):
        advice = "; raise server-memory in the ConfigMap settings" if name == CONTAINER else ""
        return f"OOMKilled, past its memory limit{advice}"
    return f"its last words: {_last_words(cluster, pods.name(pod), name)}"


def _phase(pod: Json) -> str:
    for container in pods.containers(pod):
        if container.get("ready"):
            continue
        for state, details in (container.get("state") or {}).items():
            return f"{pods.name(pod)}: {container['name']} {state} {details.get('reason', '')}".rstrip()
    return f"{pods.name(pod)}: {(pod.get('status') or {}).get('phase', 'unknown')}"


def _last_words(cluster: Cluster, pod: str, container: str) -> str:
    lines = (line.partition(" ")[2] for line in cluster.log(pod, container, tail_lines=20).splitlines())
    return pods.last_words("\n".join(lines)) or "none"

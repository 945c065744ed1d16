"""Following a publication: the Deployment that serves a draft starts anew, and fetches what `latest` names then.

Restarted as `kubectl rollout restart` does, by an annotation of its pods. That leaves what Git says of the Deployment
alone, so Argo CD and Flux do too; how old and new servers change places is the Deployment's own strategy.
"""

from spec.cluster.api import Cluster, Json
from spec.cluster.names import is_label, is_subdomain
from spec.cluster.servers import is_available, wait_until_ready
from spec.errors import BadInput

VERSION = "sgl-spec/draft"  # annotation of the pods: the published version that they were started for


def named(serves: str) -> tuple[str, str]:
    """`NAMESPACE/DEPLOYMENT` as the two of them."""
    namespace, _, name = serves.partition("/")
    if not (is_label(namespace) and is_subdomain(name)):
        raise BadInput(
            f"{serves}: what serves the draft reads NAMESPACE/DEPLOYMENT, in small letters, digits and dashes"
        )
    return namespace, name


def check_served(cluster: Cluster, name: str) -> str:
    """A line on how it is: `deployment/name` is there, or this account may not look, and the run's last step will tell.

    Raises `BadInput` if it is not there: that step would say so days later, beside a published draft.
    """
    try:
        cluster.get("deployment", name)
    except FileNotFoundError as error:
        raise _missing(cluster, name) from error
    except BadInput:
        return (
            f"deployment/{name} of {cluster.namespace}: this account may not look whether it is there "
            "(workflows/examples/serving has the Role)"
        )
    return f"deployment/{name} of {cluster.namespace}: there, to be started anew after the publication"


def roll_out(cluster: Cluster, name: str, version: str, *, patience: float, poll: float = 3.0) -> float:
    """Start `deployment/name` anew for a published version, and wait until only such servers are there.

    Pods that were started for this version already stay: again costs nothing. Returns the seconds it took. Raises
    `BadInput` if the new server crashes or there is no such Deployment, `PassingFault` if it is not ready in time.
    """
    try:
        there = cluster.get("deployment", name)
    except FileNotFoundError as error:
        raise _missing(cluster, name) from error
    annotations = there["spec"]["template"]["metadata"].get("annotations") or {}
    if annotations.get(VERSION) != version:
        change = {"spec": {"template": {"metadata": {"annotations": {VERSION: version}}}}}
        cluster.patch("deployment", name, change)

    def is_new(pod: Json) -> bool:  # an old server that fails may be why there is a new one
        return (pod["metadata"].get("annotations") or {}).get(VERSION) == version

    return wait_until_ready(cluster, name, patience=patience, poll=poll, ready=is_rolled_out, judged=is_new)


def is_rolled_out(deployment: Json) -> bool:
    """Every server is a new one and ready, and the old ones are gone."""
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    return is_available(deployment) and counts == [wanted] * len(counts)


def _missing(cluster: Cluster, name: str) -> BadInput:
    return BadInput(
        f"deployment/{name}: not in namespace {cluster.namespace}; apply what serves the draft before "
        "(as workflows/examples/serving), or name nothing to roll out to"
    )

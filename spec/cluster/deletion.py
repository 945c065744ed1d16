"""Letting a deleted Workflow go: Argo's `artifactGC` holds it by a finalizer until its artifacts are deleted.

Argo 3.7 and 4.0 keep that finalizer for ever, `forceFinalizerRemoval` or not, if there was nothing to delete or the pod
that deletes could not be made.
"""

from spec.cluster.api import Cluster
from spec.costs.records import seconds_of
from spec.errors import PassingFault

FINALIZER = "workflows.argoproj.io/artifact-gc"
PATIENCE = 600.0  # seconds; the pod that deletes artifacts has half of that


def release(cluster: Cluster, *, now: float, patience: float = PATIENCE) -> list[str]:
    """Take the finalizer from every Workflow that was deleted longer than `patience` seconds ago; returns their names.

    What is left of its artifacts stays in the store. Any other finalizer is somebody else's, and stays too.
    """
    released = []
    for metadata in cluster.metadata("workflow"):
        name, finalizers = metadata["name"], metadata.get("finalizers") or []
        deleted = metadata.get("deletionTimestamp")
        if not deleted or FINALIZER not in finalizers or now - seconds_of(deleted) <= patience:
            continue
        others = [finalizer for finalizer in finalizers if finalizer != FINALIZER]
        version = metadata["resourceVersion"]  # refused if anybody has changed it since
        try:
            cluster.patch("workflow", name, {"metadata": {"finalizers": others, "resourceVersion": version}})
        except FileNotFoundError:
            continue
        except PassingFault as fault:  # the next sweep tries again
            print(f"workflow/{name}: its finalizer stays for now: {fault}", flush=True)
            continue
        released.append(f"workflow/{name}")
    return released

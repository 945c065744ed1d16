"""Logs of trainers and servers, kept in the run: these are no pods of Argo's, which archives the others."""

from spec.cluster import pods
from spec.cluster.api import Cluster
from spec.errors import SpecError
from spec.storage import open_store

FOLDER = "logs"
LINES = 100_000  # of each container at most: one that trains for a week says more


def keep(cluster: Cluster, run: str, selector: str, container: str) -> None:
    """Write the log of each pod that is there to RUN/logs/POD.log; what was before a restart is POD.before.log.

    A log is no reason to fail: what cannot be kept is said.
    """
    try:
        store = open_store(run)
        for pod in cluster.pods(selector):
            name = pods.name(pod)
            restarted = any(its["name"] == container and its["restartCount"] for its in pods.containers(pod))
            for before in (False, True) if restarted else (False,):
                if text := cluster.log(name, container, tail_lines=LINES, before_restart=before):
                    store.write(f"{FOLDER}/{name}{'.before' if before else ''}.log", text.encode())
    except (SpecError, OSError) as error:  # a pod that is gone too
        print(f"logs of {selector} are not kept: {error}", flush=True)

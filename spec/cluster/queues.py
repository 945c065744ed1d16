"""Whether Kueue queues what a run makes: kinds that its configuration does not list it leaves alone, without a word."""

import yaml

from spec.cluster.api import Cluster
from spec.errors import BadInput, SpecError

NAMESPACE, CONFIG, KEY = "kueue-system", "kueue-manager-config", "controller_manager_config.yaml"
# Since June 2026 Kueue's own defaults leave out the training operator's kinds, PyTorchJobs among them.
WANTED = ("deployment", "kubeflow.org/pytorchjob", "pod")


def check_queue(cluster: Cluster, queue: str) -> str:
    """A line on how it is, "" without a queue. Raises `BadInput` if a kind that a run makes would not be queued.

    Where the configuration may not be read (components/kueue-configuration has the Role) the line says what to look at.
    """
    if not queue:
        return ""
    try:
        text = cluster.config_map(CONFIG, NAMESPACE)[KEY]
        listed = (yaml.safe_load(text).get("integrations") or {}).get("frameworks") or []
    except (SpecError, OSError, KeyError, AttributeError, yaml.YAMLError):
        return (
            f"queue {queue}: Kueue's configuration cannot be read here; check that integrations.frameworks in "
            f"ConfigMap {CONFIG} of {NAMESPACE} has {', '.join(WANTED)}: what it leaves out takes GPUs without waiting"
        )
    missing = [kind for kind in WANTED if kind not in listed]
    if missing:
        raise BadInput(
            f"setting queue: {queue}: Kueue does not queue {', '.join(missing)}, which would take GPUs "
            f"without waiting; add it to integrations.frameworks in ConfigMap {CONFIG} of {NAMESPACE} "
            "and restart its controller"
        )
    return f"queue {queue}: Kueue queues {', '.join(WANTED)}"

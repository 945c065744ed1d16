"""Records of pods as the Kubernetes API tells of them: trainers, and servers, which write none of their own."""

import time
from collections.abc import Iterable
from typing import Any

from spec.costs.records import Record, of_pod, seconds_of, write
from spec.errors import SpecError
from spec.storage import Store, open_store

Json = dict[str, Any]

RUN = "sgl-spec/run"  # annotation of a server or a training job: the URL of the run that it works for
EVERY = 60.0  # seconds between two records of a pod
GPU = "nvidia.com/gpu"
KINDS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "node.kubernetes.io/instance-type")
_UNITS = {"": 1.0, "m": 1e-3}


class Sightings:
    """What a follower writes of the pods that it sees: when they began, that they are still there, when they ended.

    Followers come and go, each going on with the same records. A store that is away stops none: it is tried again.
    """

    def __init__(self, run: Store, step: str, *, every: float = EVERY):
        self._run, self._step, self._every = run, step, every
        self._written: dict[str, tuple[float, bool]] = {}  # by pod: when, and whether it was over

    def saw(self, pods: Iterable[Json]) -> None:
        now = time.time()
        for pod in pods:
            record = of_a_pod(pod, self._step, now)
            if record is None:
                continue
            at, over = self._written.get(record.pod, (0.0, False))
            if over or (now - at < self._every and not record.over):
                continue
            try:
                write(self._run, record)
            except (SpecError, OSError):
                continue
            self._written[record.pod] = now, record.over


def of_a_pod(pod: Json, step: str, now: float) -> Record | None:
    """None for a pod that has no node yet: it costs nothing."""
    status = pod.get("status") or {}
    if not status.get("startTime"):
        return None
    ends = [(its.get("state") or {}).get("terminated") for its in status.get("containerStatuses") or []]
    over = bool(ends) and all(ends)
    return Record(
        step=step,
        pod=pod["metadata"]["name"],
        of_cluster=True,
        **_asked_for(pod.get("spec") or {}),
        began=seconds_of(status["startTime"]),
        seen=max(seconds_of(end["finishedAt"]) for end in ends) if over else now,  # type: ignore[index]
        over=over,
    )


def saw_server(deployment: Json, pods: Iterable[Json] = (), *, over: bool = False) -> None:
    """Record in the run that it names that a server is there, or that it has just gone. Does not fail: it says so."""
    url = (deployment["metadata"].get("annotations") or {}).get(RUN)
    if url:
        try:
            _record_server(open_store(url), deployment, pods, over)
        except (SpecError, OSError) as error:
            print(f"costs: deployment/{deployment['metadata']['name']} is not recorded: {error}", flush=True)


def _record_server(run: Store, deployment: Json, pods: Iterable[Json], over: bool) -> None:
    """A Deployment counts as one pod, from its first one on: one that takes another's place is not told from it, and
    the GPUs are the server's in between.
    """
    name, now = deployment["metadata"]["name"], time.time()
    began = [seconds_of(start) for pod in pods if (start := (pod.get("status") or {}).get("startTime"))]
    made = seconds_of(deployment["metadata"]["creationTimestamp"])
    known = of_pod(run, "serve", name)
    if known and known.began >= made:  # of this very Deployment
        record = known.model_copy(update={"seen": now, "over": over})
    elif began or over:
        asked = _asked_for(deployment["spec"]["template"].get("spec") or {})
        start = min(began, default=made)
        record = Record(
            **asked, step="serve", pod=name, of_cluster=True, began=start, seen=now, over=over, lives_on=True
        )
    else:
        return
    write(run, record)


def _asked_for(spec: Json) -> Json:
    """GPUs and CPUs of all containers of a pod, and the kind of GPU, where its selector names one."""
    asked = [(its.get("resources") or {}).get("requests") or {} for its in spec.get("containers") or []]
    chosen = spec.get("nodeSelector") or {}
    return {
        "gpus": sum(int(its.get(GPU, 0)) for its in asked),
        "cpus": sum(_cpus(str(its.get("cpu", 0))) for its in asked),
        "kind": next((chosen[label] for label in KINDS if label in chosen), ""),
    }


def _cpus(quantity: str) -> float:
    number = quantity.rstrip("m")
    return float(number) * _UNITS[quantity[len(number) :]]

"""Following a PyTorchJob to its end: rank 0's log, what holds it up, and whether trying again can help."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from spec.cluster import pods
from spec.cluster.api import Cluster, Json
from spec.errors import BadInput, PassingFault

CONTAINER = "pytorch"  # the operator insists on this name
POLL = 5.0  # seconds
RELEASE = {"spec": {"runPolicy": {"cleanPodPolicy": "Running"}}}  # the operator ends the ranks that are left


class Outcome(StrEnum):
    """How an attempt ended; the workflow's next step depends on it."""

    SUCCEEDED = "succeeded"
    RETRY = "retry"


class GaveUp(PassingFault):
    """The watcher lost its patience. The job may live on, so no other one may be started beside it."""


@dataclass(frozen=True)
class Patience:
    """Seconds that something may stay wrong before the watcher gives up."""

    missing: float = 120  # the job cannot be found: just applied, or an API server that comes back
    unreachable: float = 3600  # the API server fails: the ranks do not need it
    pulling: float = 600  # an image cannot be pulled
    pending: float = 3600  # no node has room, or the cluster refuses its pods


def follow(
    cluster: Cluster,
    job_name: str,
    *,
    patience: Patience,
    poll: float = POLL,
    saw: Callable[[list[Json]], None] = lambda workers: None,
    over: Callable[[], None] = lambda: None,
) -> str:
    """Block until the job has ended well and return its last message.

    `saw` gets its pods, each time they are seen. `over` is called at the end, before the operator is told to end
    those that still hold GPUs: their logs go with them.

    Conditions are read by type, since the operator adds `Failed` without refreshing its other counts, and starts with
    none at all. Raises `BadInput` for what another attempt would meet again (exit code 2 of a rank, an image that
    does not exist), `GaveUp` where a job that has not ended is waited for no longer, and `PassingFault` for the rest
    (lost pods, out of memory, a deadline, NCCL, a job that somebody deleted).
    """
    log = pods.LogFollower(cluster, CONTAINER)
    waits = _Waits(patience)
    while True:
        try:
            job = cluster.get("pytorchjob", job_name)
            workers = cluster.pods(f"training.kubeflow.org/job-name={job_name}")
            _print_log(log, workers, f"{job_name}-worker-0", seconds=int(poll))
            ended = condition(job, "Failed") or condition(job, "Succeeded")  # both at once: a rank failed at the end
            if ended:
                over()
                _print_log(log, workers, f"{job_name}-worker-0", seconds=int(poll))
                cluster.patch("pytorchjob", job_name, RELEASE)
        except FileNotFoundError:
            waits.on("missing", f"pytorchjob/{job_name}: not there, or deleted by somebody")
        except PassingFault as fault:
            waits.on("unreachable", str(fault))
        else:
            waits.over("missing", "unreachable")
            saw(workers)
            if ended:
                if ended["type"] == "Failed":
                    raise why(job_name, ended, workers)
                return ended.get("message", "done")
            _look_at_waiting(job, workers, waits)
        time.sleep(poll)


def condition(job: Json, kind: str) -> Json | None:
    """The condition of this type if it holds."""
    for found in (job.get("status") or {}).get("conditions") or []:
        if found["type"] == kind and found["status"] == "True":
            return found
    return None


def why(job_name: str, failed: Json, workers: list[Json]) -> BadInput | PassingFault:
    """The error that a failed job means, from what its ranks left behind."""
    ended = [(code, words) for worker in workers for code, words in pods.endings(worker) if code != 0]
    for code, words in ended:
        if code == BadInput.exit_code:
            return BadInput(f"pytorchjob/{job_name}: {words}")
    # The first rank to fail takes the others along; words of its own say more than "Error".
    told = "; ".join(f"{words} (exit code {code})" for code, words in ended)
    return PassingFault(f"pytorchjob/{job_name}: {told or failed.get('message') or failed.get('reason', 'failed')}")


def _print_log(log: pods.LogFollower, workers: list[Json], pod: str, *, seconds: int) -> None:
    # Elastic ranks follow the order of the host names, so rank 0 is in the first worker.
    if any(pods.name(worker) == pod for worker in workers):
        log.print_new(pod, seconds=seconds)


def _look_at_waiting(job: Json, workers: list[Json], waits: "_Waits") -> None:
    if condition(job, "Suspended"):
        waits.tell("suspended: its queue has not admitted it yet")
        return
    for worker in workers:
        if reason := pods.cannot_start(worker, pulls_count=False):
            raise BadInput(reason)
    pulling = [reason for worker in workers if (reason := pods.cannot_start(worker, pulls_count=True))]
    homeless = [reason for worker in workers if (reason := pods.not_scheduled(worker))]
    if not workers:
        name = pods.name(job)
        homeless = [f"no pods yet: see `kubectl describe pytorchjob {name}`; a quota or a policy may refuse them"]
    for what, reasons in (("pulling", pulling), ("pending", homeless)):
        if reasons:
            waits.on(what, reasons[0])
        else:
            waits.over(what)


class _Waits:
    """Since when each thing has been wrong; says so now and then, and gives up after its patience."""

    def __init__(self, patience: Patience, say_every: float = 60):
        self._patience = patience
        self._since: dict[str, float] = {}
        self._say_every = say_every
        self._said = -say_every

    def on(self, what: str, words: str) -> None:
        now = time.monotonic()
        self._since.setdefault(what, now)
        if now - self._since[what] >= 15:  # what passes at once is not worth a line
            self.tell(words)
        if now - self._since[what] >= getattr(self._patience, what):
            kind = {"pulling": BadInput, "missing": PassingFault}.get(what, GaveUp)
            raise kind(f"{words} (for {now - self._since[what]:.0f} s)")

    def over(self, *whats: str) -> None:
        for what in whats:
            self._since.pop(what, None)

    def tell(self, words: str) -> None:
        if time.monotonic() - self._said >= self._say_every:
            self._said = time.monotonic()
            print(f"waiting: {words}", flush=True)

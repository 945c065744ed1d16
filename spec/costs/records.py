"""Who worked on a run, from when to when, on how many GPUs and CPUs: a small JSON file each, in RUN/costs.

Whoever works writes of itself; whoever follows pods through the Kubernetes API writes of these, so that one that was
killed or deleted counts to when it was last seen. Both may write of the same pod: `spec.costs.sums` knows.
"""

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from spec.errors import BadInput
from spec.storage import Store

FOLDER = "costs"


class Record(BaseModel):
    """One process, or one pod. Times are seconds since 1970."""

    model_config = ConfigDict(extra="forbid")

    step: str  # filter, serve, train, ..
    pod: str  # its name; without a cluster host and process
    of_cluster: bool = False  # as the API server tells it: what was asked for, not what a process finds
    gpus: int = 0
    kind: str = ""  # of GPU, as `nvidia.com/gpu.product` names it; "" where nobody knows
    cpus: float = 0
    began: float
    seen: float  # last; if it is over, its end
    over: bool = False
    lives_on: bool = False  # a server: it is there until its end is recorded, though nobody looks

    @property
    def key(self) -> str:
        return f"{FOLDER}/{self.step}/{self.pod}-{self.began:.0f}{'-seen' if self.of_cluster else ''}.json"


def seconds_of(time_stamp: str) -> float:
    """RFC 3339 as seconds since 1970."""
    return datetime.fromisoformat(time_stamp).timestamp()


def write(run: Store, record: Record) -> None:
    run.write(record.key, (record.model_dump_json() + "\n").encode())


def read_all(run: Store) -> list[Record]:
    """All records of a run, of all its submissions. Raises `BadInput` for a damaged one."""
    return list(_read(run, (entry.key for entry in run.list(FOLDER) if entry.key.count("/") == 2)))


def of_pod(run: Store, step: str, pod: str) -> Record | None:
    """What was recorded of a pod that is known by its name alone; the last, where there are several."""
    there = [entry.key for entry in run.list(f"{FOLDER}/{step}") if entry.key.startswith(f"{FOLDER}/{step}/{pod}-")]
    return max((its for its in _read(run, there) if its.pod == pod), key=lambda its: its.began, default=None)


def end_forgotten(run: Store) -> None:
    """End the records of servers that went unseen, with their deleted Workflow: when anything of the run was last seen.

    For a run of which nothing goes on. A server that is there all the same is recorded once more when it goes.
    """
    records = read_all(run)
    last = max((its.seen for its in records), default=0.0)
    for record in records:
        if record.lives_on and not record.over:
            write(run, record.model_copy(update={"seen": last, "over": True}))


def _read(run: Store, keys: Iterable[str]) -> Iterable[Record]:
    for key in keys:
        try:
            yield Record.model_validate_json(run.read(key))
        except FileNotFoundError:  # of a step that has just found itself done
            continue
        except ValidationError as error:
            raise BadInput(f"{run.url}/{key}: not a record of costs ({error.errors()[0]['msg']}); delete it") from error

"""From records to GPU-seconds and CPU-seconds by step. Pure: no clock, no store."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from spec.costs.records import Record


@dataclass
class Spent:
    """Of a step, or of a run. A pod counts with what it asked for, whether it was busy or not."""

    cpu_seconds: float = 0.0
    gpu_seconds: dict[str, float] = field(default_factory=dict)  # by kind of GPU

    @property
    def gpu_hours(self) -> float:
        return sum(self.gpu_seconds.values()) / 3600

    def add(self, other: "Spent") -> None:
        self.cpu_seconds += other.cpu_seconds
        for kind, seconds in other.gpu_seconds.items():
            self.gpu_seconds[kind] = self.gpu_seconds.get(kind, 0.0) + seconds


def by_step(records: Iterable[Record], until: float | None = None) -> dict[str, Spent]:
    """What each step has used `until` a time (seconds since 1970), in the order in which they began.

    Two records of the same pod that overlap are two who saw it: from when the first saw it to when the last did, with
    what the API server says of it before what its process found.
    """
    pods: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda its: its.began):
        pods[record.step, record.pod].append(record)
    steps: dict[str, Spent] = {}
    for (step, _), its in pods.items():
        for seen in _same(its, until):
            seconds = max(0.0, _end(seen, until) - seen.began)
            used = {seen.kind: seconds * seen.gpus} if seconds * seen.gpus else {}
            if seconds:
                steps.setdefault(step, Spent()).add(Spent(seconds * seen.cpus, used))
    return steps


def total(steps: dict[str, Spent]) -> Spent:
    everything = Spent()
    for spent in steps.values():
        everything.add(spent)
    return everything


def _end(record: Record, until: float | None) -> float:
    if until is None:
        return record.seen
    return until if record.lives_on and not record.over else min(record.seen, until)


def _same(records: list[Record], until: float | None) -> list[Record]:
    """Records of one pod's name, oldest first, with those that overlap as one."""
    found: list[Record] = []
    for record in records:
        if found and record.began <= _end(found[-1], until):
            found[-1] = _both(found[-1], record)
        else:
            found.append(record)
    return found


def _both(one: Record, other: Record) -> Record:
    told = one if one.of_cluster else other
    return told.model_copy(
        update={
            "began": min(one.began, other.began),
            "seen": max(one.seen, other.seen),
            "kind": one.kind or other.kind,
            "over": one.over and other.over,
        }
    )

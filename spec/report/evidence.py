"""Everything a run says of its draft, gathered for the card and the report. What is not there yet is empty."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from spec.conversations.lineage import read_run
from spec.conversations.shards import find_shards, read_counts
from spec.costs.budget import Budget, read_budget
from spec.costs.records import read_all, seconds_of
from spec.costs.sums import Spent, by_step
from spec.errors import BadInput
from spec.evaluation.gate import times_faster
from spec.methods.files import MARKER
from spec.storage import Store
from spec.storage.markers import Json, Marker, read_marker

METRICS = "checkpoints/metrics.jsonl"
REPORT = "report/report.json"
SWEEP = "report/sweep.json"
SUITES = "report/suites"
SAMPLES = "samples/samples.json"


@dataclass(frozen=True)
class Evidence:
    run: Json  # run.json
    answers: dict[str, int]  # counts over all shards, rejects by name
    samples: Marker | None
    metrics: list[Json]  # rows of metrics.jsonl
    draft: Marker | None
    report: Marker | None  # only if it is of this very draft
    sweep: Marker | None  # likewise
    suites: list[Json]  # likewise: figures of each suite, offline and on the server
    spent: dict[str, Spent]  # by step, until the report was made: it is the same whenever it is read
    budget: Budget

    def measured(self, part: str) -> Json:
        """`offline`, `baseline`, `speculative` or `gate` of the report; {} where that was not measured."""
        return (self.report.facts.get(part) or {}) if self.report else {}

    @property
    def accept_length(self) -> float | None:
        """Tokens a forward of the target: the server's count, else the offline one."""
        for part in ("speculative", "offline"):
            if (value := self.measured(part).get("accept_length")) is not None:
                return float(value)
        return None

    @property
    def num_steps(self) -> int | None:
        """Drafts a round that it was measured with."""
        return self.measured("offline").get("num_steps") or self.measured("speculative").get("num_steps")

    @property
    def speed_up(self) -> float | None:
        """Tokens/s with the draft over tokens/s without, of the same prompts on the same server."""
        before, after = (self.measured(part) for part in ("baseline", "speculative"))
        return times_faster(before, after) if before and after else None


def gather(run: Store) -> Evidence:
    """Read what there is. Raises `BadInput` for a marker that is damaged."""
    draft = read_marker(run, f"draft/{MARKER}") or read_marker(run, MARKER)  # the latter: a published one, fetched
    report, sweep = (_of(draft, read_marker(run, key)) for key in (REPORT, SWEEP))
    return Evidence(
        run=read_run(run) or (draft.facts.get("run", {}) if draft else {}),
        answers=_answers(run),
        samples=read_marker(run, SAMPLES),
        metrics=list(_metrics(run)),
        draft=draft,
        report=report,
        sweep=sweep,
        suites=list(_suites(run, draft)),
        spent=by_step(read_all(run), seconds_of(report.finished_at) if report else None),
        budget=read_budget(run),
    )


def _of(draft: Marker | None, evidence: Marker | None) -> Marker | None:
    return evidence if draft and evidence and evidence.inputs.get("draft") == draft.identity else None


def measured_keys(run: Store, draft: Marker) -> list[str]:
    """What beside the report was measured of this very draft: the sweep, and suites."""
    keys = [SWEEP, *sorted(entry.key for entry in run.list(SUITES) if entry.key.endswith(".json"))]
    return [key for key in keys if _of(draft, read_marker(run, key))]


def _suites(run: Store, draft: Marker | None) -> Iterator[Json]:
    """Those that others publish figures of, in the order of their names, then one's own."""
    keys = [key for key in measured_keys(run, draft) if key != SWEEP] if draft else []
    found = [marker.facts for key in keys if (marker := read_marker(run, key))]
    yield from sorted(found, key=lambda facts: facts["as_published"]["prompts"] is None)


def _answers(run: Store) -> dict[str, int]:
    try:
        find_shards(run)
    except BadInput:  # none, or not all: fetched samples do without
        return {}
    return read_counts(run)


def _metrics(run: Store) -> Iterator[Json]:
    try:
        lines = run.read(METRICS).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a training that is still running, or was killed
        if isinstance(row, dict) and "step" in row:
            yield row

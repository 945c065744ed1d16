"""Several drafts on one page: what each accepts and is worth, what it cost, and in what they were made otherwise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from spec.errors import BadInput
from spec.evaluation.gate import at_once
from spec.methods import method_of
from spec.report import charts, suites, tables
from spec.report.command import target_of
from spec.report.evidence import Evidence, gather
from spec.report.page import TEMPLATES
from spec.report.suites import context_chart, published, rows_of
from spec.report.tables import plain
from spec.report.verdict import verdict
from spec.storage import Store
from spec.storage.markers import Json, Marker

Table = list[list[Any]]  # its first row is the head


@dataclass(frozen=True)
class Draft:
    name: str
    evidence: Evidence
    marker: Marker
    colour: int


def read(runs: Sequence[Store]) -> list[Draft]:
    """What is known of each run's draft. Raises `BadInput` where one has none."""
    names = [run.url.rstrip("/").rpartition("/")[2] for run in runs]
    found = []
    for at, (run, name) in enumerate(zip(runs, names, strict=True)):
        evidence = gather(run)
        if evidence.draft is None:
            raise BadInput(f"{run.url}: no draft there; run tools/extract_draft_model.py, or fetch a published one")
        told = run.url if names.count(name) > 1 else name
        found.append(Draft(told, evidence, evidence.draft, charts.spaced(at)))
    return found


def render(drafts: Sequence[Draft]) -> str:
    """The page, as one self-contained HTML document."""
    targets = list(dict.fromkeys(target_of(draft.marker) for draft in drafts))
    differences, alike = _differences(drafts)
    return TEMPLATES.get_template("comparison.html.j2").render(
        targets=", ".join(targets),
        warnings=["The targets differ: accept lengths of different targets do not compare."] if targets[1:] else [],
        drafts=[{"name": draft.name, "colour": draft.colour} for draft in drafts],
        worth=_worth(drafts),
        suites=_suites(drafts),
        notes=_notes(drafts),
        positions=_positions(drafts),
        speed=_speed(drafts),
        contexts=context_chart([(draft.name, _own(draft).get("by_context", [])) for draft in drafts]),
        loss=_loss(drafts),
        differences=differences,
        alike=alike,
    )


def _worth(drafts: Sequence[Draft]) -> Table:
    """A row a figure, a column a draft."""
    columns = [dict(_figures(draft)) for draft in drafts]
    names = dict.fromkeys(name for column in columns for name in column)
    return [
        ["", *(draft.name for draft in drafts)],
        *([name, *(its.get(name, "") for its in columns)] for name in names),
    ]


def _figures(draft: Draft) -> list[tuple[str, str]]:
    evidence, trained = draft.evidence, draft.marker.facts.get("training", {})
    method = method_of(draft.marker.facts["config"])
    own, gate = _own(draft), evidence.measured("gate")
    steps = [row for row in evidence.metrics if "loss" in row]
    seconds = sum(row.get("seconds", 0.0) for row in steps)
    best = evidence.sweep.facts["recommended"] if evidence.sweep else {}
    rows = [
        ("method", method.title),
        ("parameters", plain(draft.marker.counts.get("parameters", "?"))),
        ("accept length", f"{own['accept_length']:.2f}{_half(own)}" if own else "not measured"),
        ("measured", own.get("where", "")),
        ("drafts a round", plain(own["num_steps"]) if own else ""),
        ("speed-up", _speed_up(evidence)),
        ("best drafts a round", plain(best["drafts"] or "none") if best else ""),
        ("worth serving", verdict(evidence).partition(":")[0]),
        ("gate", ("passed" if gate["passed"] else "missed") if gate else ""),
        ("optimizer steps", plain(trained.get("step", "?"))),
        ("tokens trained on", plain(trained.get("tokens_seen", "?"))),
        ("training, minutes", f"{seconds / 60:.1f}" if seconds else "?"),
        ("processes", plain(trained.get("ranks", "?"))),
        *((f"cost: {step}", told) for step, told in tables.costs(evidence)[-1:]),
    ]
    return [(name, told) for name, told in rows if told]


def _speed_up(evidence: Evidence) -> str:
    if evidence.speed_up is None:
        return ""
    return f"{evidence.speed_up:.2f} at {at_once(evidence.measured('speculative')['concurrency'])}"


def _own(draft: Draft) -> Json:
    """Figures on the held-out prompts: the server's, else the offline ones, or {}."""
    for part, where in (("speculative", "on the server"), ("offline", "offline")):
        if "accept_length" in (figures := draft.evidence.measured(part)):
            return {**figures, "where": where}
    return {}


def _half(figures: Json) -> str:
    between = figures.get("interval")
    return f" ± {(between[1] - between[0]) / 2:.2f}" if between else ""


def _suites(drafts: Sequence[Draft]) -> Table:
    """A row a suite and turn, a column a draft; then what others published for the same target."""
    by_draft = [{one["suite"]: one for one in rows_of(draft.evidence) if one["suite"] != "own"} for draft in drafts]
    beside = {name: _published(drafts, name) for name in dict.fromkeys(name for its in by_draft for name in its)}
    more = ["published"] if any(beside.values()) else []
    rows: Table = [["suite", "turn", *(draft.name for draft in drafts), *more]]
    rows.append([suites.HELD_OUT, "all", *_cells([_own(draft) for draft in drafts]), *([""] if more else [])])
    for name, told in beside.items():
        measured = [its.get(name, {}) for its in by_draft]
        title = next(one["title"] for one in measured if one)
        rows.append([title, "all", *_cells(measured), *([told] if more else [])])
        turns = max(len(one.get("by_turn", [])) for one in measured)
        for turn in range(turns) if turns > 1 else ():
            its = [one["by_turn"][turn] if len(one.get("by_turn", [])) > turn else {} for one in measured]
            rows.append(["", str(turn + 1), *_cells(its), *([""] if more else [])])
    return rows


def _published(drafts: Sequence[Draft], suite: str) -> str:
    told = [suites.told(figure) for draft in drafts for figure in published(draft.marker, suite)]
    return "; ".join(dict.fromkeys(told))


def _cells(measured: Sequence[Json]) -> list[Markup | str]:
    """Accept lengths; the most is bold where it is surely the most."""
    known = [one for one in measured if one]
    best = max(known, key=lambda one: one["accept_length"], default=None)
    others = [_ends(one)[1] for one in known if one is not best]
    clear = best is not None and bool(others) and _ends(best)[0] > max(others)
    cells: list[Markup | str] = []
    for one in measured:
        text = f"{one['accept_length']:.2f}{_half(one)}" if one else "–"
        cells.append(Markup("<b>{}</b>").format(text) if one is best and clear else text)
    return cells


def _ends(figures: Json) -> list[float]:
    return figures.get("interval") or [figures["accept_length"]] * 2


def _notes(drafts: Sequence[Draft]) -> list[str]:
    """What keeps the columns from being compared, a sentence each."""
    notes = []
    held_out = {draft.evidence.report.inputs.get("prompts") for draft in drafts if draft.evidence.report}
    if len(held_out) > 1:
        notes.append("The held-out prompts are not the same in all runs.")
    for what, key in (
        ("Numbers of drafts a round", "num_steps"),
        ("Places, offline and a server,", "where"),
        ("Temperatures", "temperature"),
    ):
        if len({own.get(key, 0) for draft in drafts if (own := _own(draft))}) > 1:
            notes.append(f"{what} of the figures on held-out prompts differ.")
    reports = [draft.evidence.report for draft in drafts if draft.evidence.report]
    for what, key in (("Lengths of the answers", "max_new_tokens"), ("Requests at once", "concurrency")):
        if len({report.settings.get(key) for report in reports}) > 1:
            notes.append(f"{what} on held-out prompts differ.")
    asked: dict[str, set[tuple[float, ...]]] = {}
    for draft in drafts:
        for one in draft.evidence.suites:
            how = (one["questions"], one["max_new_tokens"], one["num_steps"], one.get("temperature", 0))
            asked.setdefault(one["title"], set()).add(how)
    notes += [
        f"{title} was not asked alike: prompts, lengths, drafts or temperatures differ."
        for title, its in asked.items()
        if len(its) > 1
    ]
    return notes


def _positions(drafts: Sequence[Draft]) -> Markup:
    lines = [
        charts.Line(draft.name, list(enumerate(shares, start=1)), draft.colour, dots=True)
        for draft in drafts
        if (shares := _own(draft).get("acceptance_by_position"))
    ]
    most = max((len(line.points) for line in lines), default=0)
    return charts.line_chart(
        lines,
        title="Drafts kept by position",
        x_label="draft",
        y_label="forwards that kept it",
        percent=True,
        x_names=[(at, str(at)) for at in range(1, most + 1)],
    )


def _speed(drafts: Sequence[Draft]) -> Markup:
    """The best speed-up at each load that was swept, over the logarithm of the load."""
    lines, loads = [], set[int]()
    for draft in drafts:
        best: dict[int, float] = {}
        for one in draft.evidence.sweep.facts["measured"] if draft.evidence.sweep else ():
            best[one["concurrency"]] = max(best.get(one["concurrency"], 0.0), one["speed_up"][0])
        loads |= best.keys()
        points = [(math.log2(load), faster) for load, faster in sorted(best.items())]
        lines += [charts.Line(draft.name, points, draft.colour, dots=True)] if points else []
    if not lines:
        return Markup("")
    ends = [(math.log2(load), 1.0) for load in (min(loads), max(loads))]
    return charts.line_chart(
        [charts.Line("no draft", ends, charts.REFERENCE, dashed=True), *lines],
        title="Speed-up over requests at once",
        x_label="requests at once",
        y_label="times the tokens/s without",
        x_names=[(math.log2(load), str(load)) for load in sorted(loads)],
    )


def _loss(drafts: Sequence[Draft]) -> Markup:
    lines = []
    for draft in drafts:
        rows = draft.evidence.metrics
        lines.append(
            charts.Line(
                draft.name, charts.thin([(row["step"], row["loss"]) for row in rows if "loss" in row]), draft.colour
            )
        )
        held = [(row["step"], row["held_out"]["loss"]) for row in rows if "held_out" in row]
        lines.append(charts.Line(draft.name, held, draft.colour, dashed=True))
    return charts.line_chart(
        [line for line in lines if line.points], title="Loss over the steps", x_label="optimizer step", y_label="loss"
    )


def _differences(drafts: Sequence[Draft]) -> tuple[Table, int]:
    """Rows of what was not the same for all, a column a draft, and how many settings were."""
    made = [dict(_made_of(draft)) for draft in drafts]
    names = list(dict.fromkeys(name for its in made for name in its))
    told = {name: [plain(its[name]) if name in its else "–" for its in made] for name in names}
    differ = [[name, *values] for name, values in told.items() if len(set(values)) > 1]
    return [["", *(draft.name for draft in drafts)], *differ], len(names) - len(differ)


def _made_of(draft: Draft) -> list[tuple[str, Any]]:
    evidence = draft.evidence
    run = tables.flatten({key: evidence.run.get(key) or {} for key in ("target", "dataset", "sampling")})
    samples = {"samples": evidence.samples.settings if evidence.samples else {}}
    config = [(f"draft: {name}", value) for name, value in tables.draft(evidence)]
    return [*run, *tables.flatten(samples), *tables.training(evidence), *config]

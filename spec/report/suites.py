"""Suites on page and card: accept length by suite, turn and context, and what others published for the same target."""

import math
from functools import cache
from importlib.resources import files

import yaml
from markupsafe import Markup

from spec.methods import method_of
from spec.report import charts
from spec.report.command import target_of
from spec.report.evidence import Evidence
from spec.report.tables import plain
from spec.storage.markers import Json, Marker

Table = list[list[str]]  # its first row is the head

HELD_OUT = "held-out prompts"


def section(evidence: Evidence) -> Json:
    """What the page shows; {} where no suite was asked and no context is known."""
    measured = rows_of(evidence)
    contexts = _contexts(measured)
    if not evidence.suites and not contexts:
        return {}
    return {
        "table": _table(evidence, measured) if evidence.suites else [],
        "notes": _notes(evidence),
        "contexts": contexts,
        "chart": context_chart([(one["name"], one["by_context"]) for one in measured]),
        "legend": [{"name": one["name"], "colour": charts.spaced(at)} for at, one in enumerate(measured)],
    }


def markdown(evidence: Evidence) -> str:
    """The card's table of suites; "" where none was asked."""
    if not evidence.suites:
        return ""
    head, *rows = _table(evidence, rows_of(evidence))
    lines = [head, ["---"] * len(head), *rows]
    notes = "".join(f"\n\n{note}" for note in _notes(evidence))
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + notes


def rows_of(evidence: Evidence) -> list[Json]:
    """What was asked, with its `name`: the held-out prompts first, on the server where they were asked there."""
    found = []
    for part, where in (("speculative", "on the server"), ("offline", "offline")):
        if "by_context" in (own := evidence.measured(part)):
            found.append({**own, "title": HELD_OUT, "suite": "own", "where": where})
            break
    both = {one["suite"] for one in evidence.suites if one["where"] == "on the server"}
    found += [one for one in evidence.suites if one["where"] == "on the server" or one["suite"] not in both]
    return [one | {"name": one["title"]} for one in found]


def published(draft: Marker | None, suite: str) -> list[Json]:
    """Figures of others for the draft's target: `draft`, `method`, `drafts`, `source` and the `accept_length`."""
    target = target_of(draft).rstrip("/").rpartition("/")[2].lower() if draft else ""
    return [
        {**entry, "accept_length": figures[suite]}
        for entry in _published()
        for name, figures in entry["targets"].items()
        if name.rpartition("/")[2].lower() == target and suite in figures
    ]


@cache
def _published() -> list[Json]:
    return yaml.safe_load(files("spec.report").joinpath("published.yaml").read_text())


def _table(evidence: Evidence, measured: list[Json]) -> Table:
    beside = any(published(evidence.draft, one["suite"]) for one in measured)
    table = [
        ["suite", "turn", "answers", "accept length", "95%", "kept at 1, 2, ..", *(["published"] if beside else [])]
    ]
    for one in measured:
        turns = one.get("by_turn", [])
        kept = " ".join(f"{share:.0%}" for share in one["acceptance_by_position"])
        rest = ["; ".join(told(its) for its in published(evidence.draft, one["suite"]))] if beside else []
        named = f"{one['name']}, {one['where']}"
        table.append([named, "all", plain(one.get("answers", one["prompts"])), *_length(one), kept, *rest])
        for turn in turns if len(turns) > 1 else ():
            table.append(["", str(turn["turn"]), plain(turn["answers"]), *_length(turn), "", *([""] if beside else [])])
    return table


def told(figure: Json) -> str:
    return f"{figure['accept_length']:.2f} ({figure['draft']}, {figure['drafts']} drafts)"


def _length(figures: Json) -> list[str]:
    between = figures.get("interval")
    return [f"{figures['accept_length']:.2f}", f"{between[0]:.2f} to {between[1]:.2f}" if between else "?"]


def _notes(evidence: Evidence) -> list[str]:
    """What a reader must know to hold the figures against others, a sentence each."""
    notes = []
    for one in evidence.suites:
        asked, there = one["questions"], one["as_published"]
        less = [f"{asked} prompts of {there['prompts']}"] if asked < (there["prompts"] or 0) else []
        if there["max_new_tokens"] and one["max_new_tokens"] != there["max_new_tokens"]:
            less.append(f"answers of {one['max_new_tokens']} tokens at most, not {there['max_new_tokens']}")
        if less:
            notes.append(f"{one['title']}, {one['where']}, is not asked as published figures were: {', '.join(less)}.")
        if one.get("temperature"):
            notes.append(
                f"{one['title']} is sampled at a temperature of {one['temperature']:g}; figures of others greedy."
            )
        if one["trained_on"]:
            notes.append(f"{one['title']}: {one['trained_on']} prompts that the draft was trained on are left out.")
        if one["too_long"]:
            notes.append(f"{one['title']}: {one['too_long']} turns had no room for an answer.")
    if any(one["trained_on"] is None for one in evidence.suites):
        notes.append("Nobody knows here which prompts of the suites the draft was trained on.")
    figures = [its for one in rows_of(evidence) for its in published(evidence.draft, one["suite"])]
    own = evidence.measured("offline").get("num_steps") or next((one["num_steps"] for one in evidence.suites), None)
    if any(its["drafts"] != own for its in figures):
        notes.append(f"Published figures with another number of drafts than {own} a round do not compare.")
    if figures and evidence.draft:
        method = method_of(evidence.draft.facts["config"]).name
        if any(its["method"] != method for its in figures):
            notes.append("Published figures are of the method that is named, whatever this draft's is.")
        notes.append(f"Published at {', '.join(sorted({its['source'] for its in figures}))}.")
    return notes


def _contexts(measured: list[Json]) -> Table:
    """A row a suite, a column a length of context."""
    ends = sorted({bucket["below"] for one in measured for bucket in one["by_context"]})
    if not ends:
        return []
    table = [["context, tokens", *(_between(end) for end in ends)]]
    for one in measured:
        cells = {
            bucket["below"]: f"{bucket['accept_length']:.2f} ({plain(bucket['answers'])})"
            for bucket in one["by_context"]
        }
        table.append([one["name"], *(cells.get(end, "") for end in ends)])
    return table


def _between(end: int) -> str:
    return f"to {plain(end)}" if end == 512 else f"{plain(end // 2)} to {plain(end)}"


def context_chart(lines: list[tuple[str, list[Json]]]) -> Markup:
    """Accept length over the logarithm of the context; "" where no line has two points."""
    ends = sorted({bucket["below"] for _, buckets in lines for bucket in buckets})
    if len(ends) < 2:
        return Markup("")
    drawn = [
        charts.Line(
            name, [(math.log2(its["below"]), its["accept_length"]) for its in buckets], charts.spaced(at), dots=True
        )
        for at, (name, buckets) in enumerate(lines)
    ]
    return charts.line_chart(
        drawn,
        title="Accept length by length of context",
        x_label="tokens of context, below",
        y_label="accept length",
        x_names=[(math.log2(end), f"{end // 1024}K" if end >= 1024 else str(end)) for end in ends],
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

"""The report: `report/report.html`, one file that opens anywhere without a network and says how good the draft is.

Answers are output of a model and prompts come from anybody's data set: everything on the page is escaped, and the page
forbids itself scripts and anything from outside.
"""

import jinja2
from markupsafe import Markup

from spec.conversations.shards import TOTALS
from spec.evaluation.gate import at_once, is_near_tie
from spec.methods import method_of
from spec.report import charts, lineage, suites, sweep, tables
from spec.report.command import NUM_STEPS, serving_command, target_of
from spec.report.evidence import Evidence, gather
from spec.report.verdict import sentence, verdict
from spec.samples.tokens import KINDS
from spec.storage import Store
from spec.storage.markers import Json
from spec.training import estimate

PAGE = "report/report.html"
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("spec.report", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
TEMPLATES.filters["plain"] = tables.plain
_ORDINALS = ("1st", "2nd", "3rd")
_LONGEST_EXAMPLE = 4000  # characters of a prompt or of a training sample


def write(run: Store) -> None:
    """Write the report of what `run` holds so far; what is missing is said on the page."""
    run.write(PAGE, render(gather(run)).encode())


def render(evidence: Evidence) -> str:
    """The page, as one self-contained HTML document."""
    draft, num_steps = evidence.draft, evidence.num_steps or NUM_STEPS
    return TEMPLATES.get_template("page.html.j2").render(
        method=method_of(draft.facts["config"]).title if draft else None,
        target=target_of(draft) if draft else evidence.run.get("target", {}).get("model", "an unnamed target"),
        summary=_summary(evidence),
        gate=evidence.measured("gate"),
        verdict=sentence(verdict(evidence)),
        headlines=_headlines(evidence),
        acceptance=_acceptance(evidence),
        lengths=_lengths(evidence),
        suites=suites.section(evidence),
        sweep=sweep.section(evidence),
        training=_training(evidence),
        bar=_bar(evidence),
        examples=[_example(example) for example in evidence.measured("offline").get("examples", ())],
        temperature=evidence.measured("offline").get("temperature"),
        num_steps=num_steps,
        samples=_samples(evidence),
        rejects=_rejects(evidence),
        lineage=lineage.rows(evidence),
        tables=[
            ("Measured", tables.measured(evidence)),
            ("Draft", tables.draft(evidence)),
            ("Training", tables.training(evidence)),
            ("Data", tables.data(evidence)),
            ("Costs", tables.costs(evidence)),
            ("Versions", list(tables.flatten(evidence.run.get("versions") or {}))),
            ("Files (SHA-256)", [(name, file.sha256) for name, file in draft.files.items()] if draft else []),
        ],
        command=serving_command(draft, "DRAFT", num_steps=num_steps) if draft else None,
    )


def _summary(evidence: Evidence) -> str:
    """What was measured, when and on how much, in a line below the title."""
    offline, served = evidence.measured("offline"), evidence.measured("speculative")
    if evidence.report is None:
        return ""
    known = {
        "{} held-out prompts": served.get("prompts", offline.get("prompts")),
        "chains of {} drafts": evidence.num_steps,
        "SGLang {}": served.get("server", {}).get("version"),
        "{}": evidence.report.finished_at.replace("T", " ").replace("Z", " UTC"),
    }
    return " · ".join(form.format(value) for form, value in known.items() if value)


def _headlines(evidence: Evidence) -> list[Json]:
    """The figures that a reader in a hurry sees: name, value, and what it is to be held against."""
    offline, served, alone = (evidence.measured(part) for part in ("offline", "speculative", "baseline"))
    untrained = offline.get("untrained_accept_length")
    length = evidence.accept_length
    first = (served or offline).get("acceptance_by_position", [None])[0]
    told = served if "differ" in served else offline
    return [
        {
            "name": "Accept length",
            "value": f"{length:.2f}" if length is not None else None,
            "note": "tokens a forward of the target"
            + (f"; untrained {untrained:.2f}" if untrained is not None else ""),
        },
        {
            "name": "Speed-up",
            "value": f"{evidence.speed_up:.2f}×" if evidence.speed_up is not None else None,
            "note": f"{served['tokens_per_s']:.1f} tokens/s with the draft, {alone['tokens_per_s']:.1f} without, at "
            + at_once(served["concurrency"])
            if evidence.speed_up is not None
            else "needs a server with the draft and one without",
        },
        {
            "name": "First guess kept",
            "value": f"{first:.0%}" if first is not None else None,
            "note": "of the first tokens that the draft proposes",
        },
        {
            "name": "Same tokens",
            "value": _same(told) if told else None,
            "note": f"answers are drawn, at temperature {told['temperature']:g}"
            if "temperature" in told
            else tables.same_tokens(told)
            if told.get("differ")
            else "with the draft as without it",
        },
    ]


def _same(told: Json) -> str:
    """Whether the draft changed a token; "nearly" where only ties between two tokens fell otherwise."""
    if "temperature" in told:
        return "not claimed"
    if not told.get("differ"):
        return "yes"
    return "nearly" if all(map(is_near_tie, told["differ"])) else "no"


def _acceptance(evidence: Evidence) -> Json:
    """Share of forwards that kept the 1st, 2nd, .. draft: on the server and offline."""
    parts = [("on the server", evidence.measured("speculative")), ("offline", evidence.measured("offline"))]
    shares = [(name, part["acceptance_by_position"]) for name, part in parts if "acceptance_by_position" in part]
    if not shares:
        return {}
    groups = [
        (f"{ordinal(at)} draft", [values[at] for _, values in shares]) for at in range(min(len(v) for _, v in shares))
    ]
    about = "; ".join(f"{name}: " + ", ".join(f"{share:.1%}" for share in values) for name, values in shares)
    return {
        "chart": charts.bar_chart(groups, title=f"Drafts kept by position. {about}", y_label="forwards that kept it"),
        "legend": [name for name, _ in shares],
    }


def _lengths(evidence: Evidence) -> list[Json]:
    """Accept lengths as bars that start at 0: 1 is what a target does without any draft."""
    offline, served = evidence.measured("offline"), evidence.measured("speculative")
    found = [
        ("this draft, on the server", served.get("accept_length"), "b0"),
        ("this draft, offline", offline.get("accept_length"), "b1"),
        ("an untrained draft, offline", offline.get("untrained_accept_length"), "idle"),
    ]
    most = _longest(evidence)
    return [
        {"name": name, "value": f"{value:.2f}", "width": round(100 * value / most, 1), "kind": kind}
        for name, value, kind in found
        if value is not None
    ]


def _bar(evidence: Evidence) -> Json:
    """The least accept length to publish, as a mark across the bars; {} where none was set."""
    bar = evidence.measured("gate").get("min_accept_length")
    return {"value": f"{bar:g}", "left": round(100 * bar / _longest(evidence), 1)} if bar is not None else {}


def _longest(evidence: Evidence) -> float:
    """Accept length at the end of the bars' scale."""
    parts = (evidence.measured(part) for part in ("offline", "speculative"))
    known = [part.get("accept_length") for part in parts] + [evidence.measured("gate").get("min_accept_length")]
    return max([1.0, *(value for value in known if value is not None)])


def _training(evidence: Evidence) -> Json:
    """Loss and accuracy over the steps, a line a draft position; held-out dashed. {} without metrics."""
    rows = [row for row in evidence.metrics if "loss_by_position" in row]
    held = [row for row in evidence.metrics if "held_out" in row]
    if not rows:
        return {}
    positions = len(rows[-1]["loss_by_position"])
    last, last_held = rows[-1], held[-1]["held_out"] if held else None

    def chart(key: str, title: str, label: str, percent: bool) -> Markup:
        lines = []
        for at in range(positions):
            points = charts.thin([(row["step"], row[key][at]) for row in rows])
            lines.append(charts.Line(ordinal(at), points, at))
            checked = [(row["step"], row["held_out"][key][at]) for row in held]
            if checked and at == 0:
                lines.append(charts.Line(ordinal(at), checked, at, dashed=True, dots=True))
        return charts.line_chart(lines, title=title, x_label="optimizer step", y_label=label, percent=percent)

    return {
        "estimate": _estimate(evidence),
        "loss": chart("loss_by_position", "Loss by draft position over the steps", "loss", False),
        "accuracy": chart("accuracy_by_position", "Accuracy by draft position over the steps", "accuracy", True),
        "held_out": bool(held),
        "positions": [
            {
                "name": ordinal(at),
                "loss": last["loss_by_position"][at],
                "accuracy": last["accuracy_by_position"][at],
                "held_loss": last_held["loss_by_position"][at] if last_held else None,
                "held_accuracy": last_held["accuracy_by_position"][at] if last_held else None,
            }
            for at in range(positions)
        ],
        "last": last,
    }


def _estimate(evidence: Evidence) -> Json:
    """Accept length over the steps, as training estimated it, and calibrated by what real speculation accepted of this
    very draft; {} where nothing was evaluated."""
    offline = evidence.measured("offline")
    drafts = offline.get("num_steps", estimate.DRAFTS)
    points = [
        (row["step"], estimate.accept_length(row["held_out"]["accuracy_by_position"], drafts))
        for row in evidence.metrics
        if "held_out" in row
    ]
    if not points:
        return {}
    lines = [charts.Line("estimated", points, 0, dashed=True, dots=True)]
    legend, note = [{"name": "estimated, on the held-out rows", "colour": 0}], ""
    exported = evidence.draft.facts.get("training", {}).get("step") if evidence.draft else None
    then, measured = dict(points).get(exported), offline.get("accept_length")
    if then is not None and measured is not None and (factor := estimate.calibration(then, measured)) is not None:
        scaled = [(step, 1 + factor * (its - 1)) for step, its in points]
        lines.append(charts.Line("calibrated", scaled, 2, dots=True))
        legend.append({"name": "calibrated", "colour": 2})
        note = f"At step {exported} it was {then:.2f}, and real speculation accepted {measured:.2f}."
    title = "Estimated accept length over the steps"
    chart = charts.line_chart(lines, title=title, x_label="optimizer step", y_label="accept length")
    return {"chart": chart, "legend": legend, "note": note, "drafts": drafts}


def _samples(evidence: Evidence) -> Json:
    if evidence.samples is None:
        return {}
    facts = evidence.samples.facts
    lengths = facts.get("lengths", {"edges": [], "rows": []})
    example = [(text[:_LONGEST_EXAMPLE], bears) for text, bears in next(iter(facts.get("examples", [])), [])]
    splits = [(name, facts[key]) for name, key in (("training", "train"), ("held out", "held_out")) if key in facts]
    return {
        "splits": splits,
        "kinds": _kinds([split for _, split in splits]),
        "histogram": charts.histogram(
            lengths["edges"],
            lengths["rows"],
            title="Training rows by length",
            x_label="tokens in a row",
            y_label="rows",
        ),
        "example": example,
    }


def _kinds(splits: list[Json]) -> list[tuple[str, list[float]]]:
    """What the tokens that bear loss are, and their share of these in each split; older samples do not say."""
    by_kind = [split.get("loss_by_kind", {}) for split in splits]
    present = [kind for kind in KINDS if any(kind in its for its in by_kind)]
    return [
        (kind.replace("_", " "), [its.get(kind, 0) / (sum(its.values()) or 1) for its in by_kind]) for kind in present
    ]


def _rejects(evidence: Evidence) -> list[Json]:
    """What became of every row, at filter and at prepare; buckets that stayed empty are left out."""
    totals = (*TOTALS, "train", "held_out")
    steps = [("filter", evidence.answers), ("prepare", evidence.samples.counts if evidence.samples else {})]
    return [
        {"step": step, "name": name, "count": count}
        for step, counts in steps
        for name, count in counts.items()
        if name not in totals and count
    ]


def _example(example: Json) -> Json:
    """An answer in pieces; the first is the target's own token, which the prompt's forward gives."""
    kept = sum(piece["accepted"] for piece in example["pieces"])
    return {
        "prompt": example["prompt"][:_LONGEST_EXAMPLE],
        "pieces": example["pieces"],
        "note": f"{len(example['pieces'])} forwards, {kept} drafts kept",
    }


def ordinal(at: int) -> str:
    return _ORDINALS[at] if at < len(_ORDINALS) else f"{at + 1}th"

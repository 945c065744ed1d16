"""The sweep on page and card: the curves, what rounds accept and cost, and which settings were left out."""

import math
from importlib.resources import files

from markupsafe import Markup

from spec.evaluation.gate import at_once
from spec.methods.method import ADAPTIVE, Drafts
from spec.report import charts
from spec.report.evidence import Evidence, gather
from spec.storage import Store
from spec.storage.markers import Json
from spec.tuning.arithmetic import order

PICTURE = "report/sweep.svg"

Table = list[list[str]]  # its first row is the head


def write(run: Store) -> None:
    """Write the curves as a picture of their own."""
    if picture := section(gather(run)).get("chart"):
        style = Markup("<style>{}</style>").format(Markup(files("spec.report").joinpath("page.css").read_text()))
        start = Markup('<svg xmlns="http://www.w3.org/2000/svg" ')
        head, _, body = picture.partition(">")
        run.write(PICTURE, f"{head.replace(Markup('<svg '), start)}>{style}{body}\n".encode())


def section(evidence: Evidence) -> Json:
    """What the page shows; {} without a sweep of this draft."""
    if evidence.sweep is None:
        return {}
    facts = evidence.sweep.facts
    measured = facts["measured"]
    drafts = sorted({one["drafts"] for one in measured}, key=order)
    return {
        "chart": _chart(measured, drafts),
        "legend": [{"name": _drafts(count), "colour": charts.spaced(at)} for at, count in enumerate(drafts)],
        "rounds": measured[0]["rounds"],
        "rounds_table": _rounds(measured),
        "times_table": _times(measured),
        "same": _same(measured),
        "most": " or ".join(sorted({str(one["max_running_requests"] or "an unknown number of") for one in measured})),
        "skipped": ", ".join(
            f"{_drafts(one['drafts'])} at {at_once(one['concurrency'])} (at most {one['at_most']:.2f} times)"
            for one in facts["skipped"]
        ),
    }


def markdown(evidence: Evidence) -> str:
    """The card's table: a row a number of drafts, a column a load."""
    if evidence.sweep is None:
        return ""
    facts = evidence.sweep.facts
    cells = {(one["drafts"], one["concurrency"]): f"{one['speed_up'][0]:.2f}" for one in facts["measured"]}
    cells |= {(one["drafts"], one["concurrency"]): f"at most {one['at_most']:.2f}" for one in facts["skipped"]}
    drafts, loads = sorted({one for one, _ in cells}, key=order), sorted({load for _, load in cells})
    rows = [["drafts a round", *map(str, loads)], ["---"] * (len(loads) + 1)]
    rows += [[str(count), *(cells.get((count, load), "") for load in loads)] for count in drafts]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _chart(measured: list[Json], drafts: list[Drafts]) -> Markup:
    """Speed-ups over the logarithm of the load, so that 1, 4, 16 and 64 are as far apart."""
    loads = sorted({one["concurrency"] for one in measured})
    lines = []
    for at, count in enumerate(drafts):
        of = sorted((one["concurrency"], one["speed_up"][0]) for one in measured if one["drafts"] == count)
        points = [(math.log2(load), faster) for load, faster in of]
        lines.append(charts.Line(_drafts(count), points, charts.spaced(at), dots=True, named=True))
    ends = [(math.log2(load), 1.0) for load in (loads[0], loads[-1])]
    told = "; ".join(f"{_drafts(one['drafts'])} at {one['concurrency']}: {one['speed_up'][0]:.2f}" for one in measured)
    return charts.line_chart(
        [charts.Line("no draft", ends, charts.REFERENCE, dashed=True, named=True), *lines],
        title=f"Speed-up over requests at once. {told}",
        x_label="requests at once",
        y_label="times the tokens/s without",
        x_names=[(math.log2(load), str(load)) for load in loads],
    )


def _rounds(measured: list[Json]) -> Table:
    rows = [["drafts", "at once", "accepts", "costs", "round, ms", "verifying, about", "drafting", "speed-up"]]
    for one in measured:
        took, verify = one["drafted"]["round_ms"][0], one["verify_ms"]
        shares = ["?"] * 2 if verify is None else [f"{min(verify, took):.1f}", f"{max(took - verify, 0.0):.1f}"]
        rows.append(
            [
                str(one["drafts"]),
                str(one["concurrency"]),
                f"{one['accepts']:.2f}",
                f"{one['costs'][0]:.2f}",
                f"{took:.1f}",
                *shares,
                _spread(one["speed_up"]),
            ]
        )
    return rows


def _times(measured: list[Json]) -> Table:
    kinds = {"tokens/s": "tokens_per_s", "first token": "first_token_ms", "p99": "first_token_p99_ms"}
    kinds |= {"per token": "per_token_ms", "gap": "gap_ms", "gap p99": "gap_p99_ms"}
    rows = [["drafts", "at once", *kinds]]
    for one in measured:
        for server, count in (("plain", "none"), ("drafted", str(one["drafts"]))):
            figures = [f"{one[server][name][0]:.1f}" for name in kinds.values()]
            rows.append([count, str(one["concurrency"]), *figures])
    return rows


def _same(measured: list[Json]) -> str:
    worst = min(measured, key=lambda one: one["same_answers"] / one["prompts"])
    least = "at least " if worst["same_answers"] < worst["prompts"] else ""
    return f"{least}{worst['same_answers']} of {worst['prompts']}"


def _spread(values: list[float]) -> str:
    middle, least, most = values
    return f"{middle:.2f} ({least:.2f} to {most:.2f})"


def _drafts(count: Drafts) -> str:
    if count == ADAPTIVE:
        return ADAPTIVE
    return f"{count} draft{'s' if count > 1 else ''}"

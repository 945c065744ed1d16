"""What the card and the report both tabulate: (name, value) rows of the evidence, the same figures in both."""

import math
from collections.abc import Iterator
from typing import Any

from spec.costs.sums import total
from spec.evaluation.gate import at_once, is_near_tie
from spec.methods import method_of
from spec.methods.method import Rows
from spec.report.evidence import Evidence
from spec.storage.markers import Json


def measured(evidence: Evidence) -> Rows:
    """How good the draft is; [] if nobody measured it."""
    offline, served, alone = (evidence.measured(part) for part in ("offline", "speculative", "baseline"))
    rows: Rows = []
    for where, part in (("SGLang", served), ("offline", offline)):
        if "accept_length" in part:
            rows.append((f"accept length ({where})", f"{part['accept_length']:.2f} tokens a forward"))
            shares = ", ".join(f"{share:.1%}" for share in part.get("acceptance_by_position", ()))
            rows.append((f"drafts accepted by position ({where})", shares))
    if "untrained_accept_length" in offline:
        rows.append(("accept length of an untrained draft", f"{offline['untrained_accept_length']:.2f}"))
    if evidence.speed_up is not None:
        rows.append(
            ("tokens/s without and with the draft", f"{alone['tokens_per_s']:.1f} and {served['tokens_per_s']:.1f}")
        )
        rows.append(("speed-up", f"{evidence.speed_up:.2f}x at {at_once(served['concurrency'])}"))
    if most := served.get("server", {}).get("max_running_requests"):
        rows.append(("requests that both servers run at once, at most", most))
    if "tokens_equal_baseline" in served:
        rows.append(("same tokens as the server without the draft", same_tokens(served)))
    if "tokens_equal" in offline:
        rows.append(("same tokens as plain greedy decoding (offline)", same_tokens(offline)))
    if temperature := (served or offline).get("temperature"):
        rows.append(("sampled at a temperature of", temperature))
        rows.append(("same tokens", "not claimed: answers that are drawn differ with every draw"))
    if agreement := evidence.measured("agreement"):
        rows.append(("offline and server agree", _agreement(agreement)))
    prompts = served.get("prompts", offline.get("prompts"))
    return [*rows, ("held-out prompts", prompts)] if rows else []


def same_tokens(part: Json) -> str:
    """Whether the draft changed what is answered; at a near tie two tokens may change places by rounding alone."""
    differ = part.get("differ", [])
    if not differ:
        return "yes"
    ties = sum(is_near_tie(one) for one in differ)
    return f"in {part['prompts'] - len(differ)} of {part['prompts']} answers; {ties} of the others part at near ties"


def _agreement(found: Json) -> str:
    if "agree" in found:
        ends = " to ".join(f"{end:+.2f}" for end in found["interval_apart"] or ())
        how = "within" if found["agree"] else "beyond"
        return f"{how} chance: {found['apart']:+.3f} apart, 95% interval {ends or 'not known'}"
    equal, prompts = found["equal_answers"], found["prompts"]
    return f"in {equal} of {prompts} answers, and in the drafts accepted by each forward in {found['equal_counts']}"


def data(evidence: Evidence) -> Rows:
    """Where the prompts come from, how they were answered, and what became of every row."""
    origin = [(f"prompts: {name}", value) for name, value in flatten(evidence.run.get("dataset", {}))]
    answers = [(f"answers: {name}", value) for name, value in flatten(evidence.run.get("sampling", {}))]
    counts = [(f"filter: {name}", value) for name, value in evidence.answers.items()]
    samples = evidence.samples.counts if evidence.samples else {}
    return [*origin, *answers, *counts, *((f"samples: {name}", value) for name, value in samples.items())]


def training(evidence: Evidence) -> Rows:
    """The settings that decided the draft, and how far training went."""
    trained = evidence.draft.facts.get("training", {}) if evidence.draft else {}
    reached = {name: trained.get(name) for name in ("step", "epoch", "tokens_seen", "ranks")}
    return list(flatten({**trained.get("settings", {}), **reached}))


def costs(evidence: Evidence) -> Rows:
    """What each step took until the draft was measured, and all of them; [] where nothing was recorded."""
    if not evidence.spent:
        return []
    return [
        (step, f"{evidence.budget.told(spent)}; {plain(round(spent.cpu_seconds / 3600, 2))} CPU-hours")
        for step, spent in [*evidence.spent.items(), ("together", total(evidence.spent))]
    ]


def draft(evidence: Evidence) -> Rows:
    """What the draft is."""
    if evidence.draft is None:
        return []
    config = evidence.draft.facts["config"]
    published = evidence.draft.facts.get("published", {})
    origin = [("published at", f"{published['at']}, SHA-256 {published['sha256']}")] if published else []
    return [
        *origin,
        ("parameters", evidence.draft.counts.get("parameters")),
        ("dtype", config["torch_dtype"]),
        *method_of(config).describe(config),
        ("served with contexts up to", evidence.draft.facts["context_length"]),
    ]


def flatten(settings: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of nested settings as `optimizer.lr`, of things that have names as `mix.1.share`.

    Those without a value are left out.
    """
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(its, dict) and "name" in its for its in value):
            yield from flatten({str(number): its for number, its in enumerate(value, start=1)}, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def plain(value: Any) -> str:
    """A value as a person writes it: 1,234 and 0.001, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else "not a number"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return str(value)

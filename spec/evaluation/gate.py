"""What the parts of an evaluation say together: do they agree, and is the draft good enough."""

import math
from dataclasses import dataclass
from typing import Any

from spec.errors import BadInput
from spec.evaluation import regression

Part = dict[str, Any]

# Two next tokens this close, in nats, may change places when the same sums are made in another order: bfloat16 logits
# of 16 to 32, where a large model's best ones lie, are 0.125 apart. In fp32 ties are a thousand times closer.
NEAR_TIE = 0.25

# Between the offline run and the server, relative. Equal in fp32; in bfloat16 answers part at near ties, and go on with
# other tokens.
TOLERANCE = 0.1

_PRIVATE = ("of", "outputs", "histograms")  # of the parts: for comparing, not for reading


@dataclass(frozen=True)
class Bar:
    """What a draft must reach to be published. Raises `BadInput` for a speed without a load, or a load alone."""

    accept_length: float | None = None  # tokens a forward of the target
    speed_up: float | None = None  # tokens/s with the draft over those without it, ..
    at_concurrency: int | None = None  # .. at so many requests at once
    max_regression: float | None = None  # worse than the published draft by this fraction and the spread, at most

    def __post_init__(self) -> None:
        if (self.speed_up is None) != (self.at_concurrency is None):
            raise BadInput(
                "--min-speed-up and --at-concurrency go together: a draft that is faster at one load may be slower at "
                "another; give both or neither"
            )


def conclude(parts: dict[str, Part], bar: Bar, published: Part | None = None) -> dict[str, Any]:
    """The facts of `report.json`: each part's figures, how they agree, the gate, and the draft that is `published`."""
    facts = {name: {key: value for key, value in part.items() if key not in _PRIVATE} for name, part in parts.items()}
    if "offline" in parts and "speculative" in parts:
        facts["agreement"] = agreement(parts["offline"], parts["speculative"])
    if published is not None:
        facts["published"] = published
    return facts | {"gate": gate(facts, bar)}


def agreement(offline: Part, served: Part) -> dict[str, Any]:
    """The offline run and the server on the same prompts: in fp32, equal answers come with equal counts.

    Sampled answers are never equal: then their accept lengths, with the 95% intervals of both and of what is between.
    """
    if "temperature" in offline:
        return _sampled_agreement(offline, served)
    pairs = zip(offline["outputs"], served["outputs"], offline["histograms"], served["histograms"], strict=True)
    equal = [here == there for one, other, here, there in pairs if one == other]
    return {
        "prompts": len(offline["outputs"]),
        "equal_answers": len(equal),
        "equal_counts": sum(equal),
        "accept_length_offline": offline["accept_length"],
        "accept_length_served": served["accept_length"],
    }


def _sampled_agreement(offline: Part, served: Part) -> dict[str, Any]:
    apart = served["accept_length"] - offline["accept_length"]
    both = [part["interval"] for part in (offline, served)]
    half = math.hypot(*((high - low) / 2 for low, high in both)) if all(both) else None
    return {
        "prompts": len(offline["outputs"]),
        "accept_length_offline": offline["accept_length"],
        "accept_length_served": served["accept_length"],
        "interval_offline": offline["interval"],
        "interval_served": served["interval"],
        "apart": apart,
        "interval_apart": [apart - half, apart + half] if half is not None else None,
        "agree": half is None or abs(apart) <= half,
    }


def gate(facts: dict[str, Any], bar: Bar) -> dict[str, Any]:
    """Whether the draft may be published, and why (not)."""
    measured = "speculative" if "speculative" in facts else "offline"
    where = "on the server" if measured == "speculative" else "offline"
    if temperature := facts[measured].get("temperature"):
        where += f", sampled at {temperature:g}"
    length = facts[measured]["accept_length"]
    against = []
    if bar.accept_length is not None and length < bar.accept_length:
        against.append(f"accept length {length:.3f} {where} is below {bar.accept_length:g}")
    judged = {"min_accept_length": bar.accept_length, "accept_length": length, "measured": where}
    bars = "no bar was set" if bar.accept_length is None else f"the bar is {bar.accept_length:g}"
    if bar.speed_up is not None:
        found, told = speed_up(facts, bar)
        judged |= {"min_speed_up": bar.speed_up, "speed_up": found, "at_concurrency": bar.at_concurrency}
        bars += f"; {told}; the bar is {bar.speed_up:g}"
        if found < bar.speed_up:
            against.append(f"{told}, is below {bar.speed_up:g}")
    if bar.max_regression is not None:
        worse, told = regression.judge(_published(facts), bar.max_regression)
        judged |= {"max_regression": bar.max_regression}
        bars += f"; {told}"
        against += worse
    if "agreement" in facts:
        offline, served = facts["agreement"]["accept_length_offline"], facts["agreement"]["accept_length_served"]
        by_chance = facts["agreement"].get("agree", False)  # sampled, and within what chance alone does
        if abs(offline - served) > TOLERANCE * offline and not by_chance:
            against.append(
                f"accept length is {served:.3f} on the server and {offline:.3f} offline: one misreads the draft"
            )
    for part, name in (("offline", "offline speculation"), ("speculative", "the server with the draft")):
        wrong = [differ for differ in facts.get(part, {}).get("differ", []) if not is_near_tie(differ)]
        if wrong:
            against.append(f"{name} answers {len(wrong)} prompts otherwise than without the draft")
    why = "; ".join(against) or f"accept length {length:.3f} {where}; {bars}"
    return judged | {"passed": not against, "why": why}


def speed_up(facts: dict[str, Any], bar: Bar) -> tuple[float, str]:
    """The speed-up at the bar's load, and in words. Raises `BadInput` where it was not measured there."""
    plain, drafted = facts.get("baseline"), facts.get("speculative")
    loads = {part["concurrency"] for part in (plain, drafted) if part}
    if not plain or not drafted or loads != {bar.at_concurrency}:
        seen = f"measured at {' and '.join(map(str, sorted(loads)))}" if loads else "no speed was measured"
        raise BadInput(
            f"--at-concurrency {bar.at_concurrency}: {seen}; run tools/evaluate_draft.py with the same "
            "--at-concurrency, on a server with the draft and on one without"
        )
    found = times_faster(plain, drafted)
    return found, f"{found:.2f} times the tokens/s without the draft, measured at {at_once(bar.at_concurrency)}"


def times_faster(plain: Part, drafted: Part) -> float:
    """Tokens/s with the draft over those without: the rounds' median where both were asked in turn."""
    return drafted["speed_up"][0] if "speed_up" in drafted else drafted["tokens_per_s"] / plain["tokens_per_s"]


def _published(facts: dict[str, Any]) -> Part:
    if "published" not in facts:
        raise BadInput(
            "--max-regression: the draft was not compared with the one that is published; run tools/evaluate_draft.py "
            "with the same --max-regression and --against"
        )
    return facts["published"]


def at_once(concurrency: int | None) -> str:
    return "one request at a time" if concurrency == 1 else f"{concurrency} requests at once"


def is_near_tie(differ: dict[str, Any]) -> bool:
    return differ["gap"] is not None and differ["gap"] <= NEAR_TIE

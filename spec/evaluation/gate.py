"""What the parts of an evaluation say together: do they agree, and is the draft good enough."""

from typing import Any

Part = dict[str, Any]

# Two next tokens this close, in nats, may change places when the same sums are made in another order: bfloat16 logits
# of 16 to 32, where a large model's best ones lie, are 0.125 apart. In fp32 ties are a thousand times closer.
NEAR_TIE = 0.25

# Between the offline run and the server, relative. Equal in fp32; in bfloat16 answers part at near ties, and go on with
# other tokens.
TOLERANCE = 0.1

_PRIVATE = ("of", "outputs", "histograms")  # of the parts: for comparing, not for reading


def conclude(parts: dict[str, Part], min_accept_length: float | None) -> dict[str, Any]:
    """The facts of `report.json`: each part's figures, how they agree, and the gate."""
    facts = {name: {key: value for key, value in part.items() if key not in _PRIVATE} for name, part in parts.items()}
    if "offline" in parts and "speculative" in parts:
        facts["agreement"] = agreement(parts["offline"], parts["speculative"])
    return facts | {"gate": gate(facts, min_accept_length)}


def agreement(offline: Part, served: Part) -> dict[str, Any]:
    """The offline run and the server on the same prompts: in fp32, equal answers come with equal counts."""
    pairs = zip(offline["outputs"], served["outputs"], offline["histograms"], served["histograms"], strict=True)
    equal = [here == there for one, other, here, there in pairs if one == other]
    return {
        "prompts": len(offline["outputs"]),
        "equal_answers": len(equal),
        "equal_counts": sum(equal),
        "accept_length_offline": offline["accept_length"],
        "accept_length_served": served["accept_length"],
    }


def gate(facts: dict[str, Any], min_accept_length: float | None) -> dict[str, Any]:
    """Whether the draft may be published, and why (not)."""
    measured = "speculative" if "speculative" in facts else "offline"
    where = "on the server" if measured == "speculative" else "offline"
    length = facts[measured]["accept_length"]
    against = []
    if min_accept_length is not None and length < min_accept_length:
        against.append(f"accept length {length:.3f} {where} is below {min_accept_length:g}")
    if "agreement" in facts:
        offline, served = facts["agreement"]["accept_length_offline"], facts["agreement"]["accept_length_served"]
        if abs(offline - served) > TOLERANCE * offline:
            against.append(
                f"accept length is {served:.3f} on the server and {offline:.3f} offline: one misreads the draft"
            )
    for part, name in (("offline", "offline speculation"), ("speculative", "the server with the draft")):
        wrong = [differ for differ in facts.get(part, {}).get("differ", []) if not is_near_tie(differ)]
        if wrong:
            against.append(f"{name} answers {len(wrong)} prompts otherwise than without the draft")
    bar = "no bar was set" if min_accept_length is None else f"the bar is {min_accept_length:g}"
    return {
        "min_accept_length": min_accept_length,
        "accept_length": length,
        "measured": where,
        "passed": not against,
        "why": "; ".join(against) or f"accept length {length:.3f} {where}; {bar}",
    }


def is_near_tie(differ: dict[str, Any]) -> bool:
    return differ["gap"] is not None and differ["gap"] <= NEAR_TIE

"""Whether to deploy a draft, in words for whoever serves it: accept length is a means, tokens/s at a load the end."""

from spec.evaluation.gate import at_once
from spec.report.evidence import Evidence
from spec.tuning.arithmetic import NOISE, words


def verdict(evidence: Evidence) -> str:
    """A sentence without its full stop, from the sweep if there is one; "" where the speed was not measured."""
    if evidence.sweep:
        return words(evidence.sweep.facts["recommended"])
    faster = evidence.speed_up
    if faster is None:
        return ""
    load = at_once(evidence.measured("speculative")["concurrency"])
    if faster > 1 + NOISE:
        return f"deploy it: {faster:.2f} times faster at {load}"
    how = "slower" if faster < 1 - NOISE else "no faster"
    return f"do not deploy it for speed: {how} at {load} ({faster:.2f} times the tokens/s without it)"


def sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""

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
    part = evidence.measured("speculative")
    load, seen = at_once(part["concurrency"]), _seen(part.get("speed_up"))
    if faster > 1 + NOISE:
        return f"deploy it: {faster:.2f} times faster at {load}{seen}"
    how = "slower" if faster < 1 - NOISE else "no faster"
    return f"do not deploy it for speed: {how} at {load} ({faster:.2f} times the tokens/s without it){seen}"


def _seen(rounds: list[float] | None) -> str:
    """How far to trust it."""
    if rounds is None:
        return "; each server was measured at its own time, so what else the machines did is in it"
    _, least, most = rounds
    return "" if least == most else f"; {least:.2f} to {most:.2f} in rounds of both servers in turn"


def sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""

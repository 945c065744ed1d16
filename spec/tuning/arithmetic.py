"""What a round accepts against what it costs: which settings cannot win, and which one to serve with. Needs no torch.

A round with k drafts gives a tokens (the target's own, and the drafts that it keeps) and takes as long as c forwards
without a draft. Where requests wait for nothing else, a draft makes a server a / c times as fast.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from spec.evaluation.gate import at_once
from spec.methods.method import ADAPTIVE, Drafts

Json = dict[str, Any]

NOISE = 0.05  # of a speed-up: what two measurements of the same server differ by


def accepts_at_most(drafts: int, by_position: Sequence[float] | None) -> float:
    """Tokens a round of a chain of `drafts`, given what another chain of the same draft keeps by position.

    Up to the positions that are known it is what they add up to (about: shorter rounds begin at other tokens). Beyond,
    none is kept more often than the last known one, since a draft is kept only with all those before it. `by_position`
    None, as of a block of another size: all might be kept.
    """
    if not by_position:
        return 1.0 + drafts
    beyond = max(0, drafts - len(by_position))
    return 1 + sum(by_position[:drafts]) + beyond * by_position[-1]


def order(drafts: Drafts) -> float:
    """Numbers of drafts as they are measured and told: the adaptive one, which bounds no other, comes last."""
    return math.inf if drafts == ADAPTIVE else drafts


def wins_at_most(drafts: Drafts, load: int, by_position: Sequence[float] | None, measured: Sequence[Json]) -> float:
    """A bound of the speed-up: a round costs no less than one of half as many drafts, at its least, nor than a forward.

    Not than one of any fewer: a product of 4 rows may be faster than one of 3. None of an adaptive number, which may be
    the best one at each load.
    """
    if drafts == ADAPTIVE:
        return math.inf
    half = [one["costs"][1] for one in measured if one["concurrency"] == load and 2 * order(one["drafts"]) <= drafts]
    return accepts_at_most(drafts, by_position) / max([1.0, *half])


def cannot_win(bound: float, load: int, measured: Sequence[Json]) -> bool:
    """Whether it loses to no draft, or to what is measured at this load, by more than noise."""
    best = max([1.0, *(one["speed_up"][0] for one in measured if one["concurrency"] == load)])
    return bound < best * (1 - NOISE)


def forward_ms(measured: Sequence[Json]) -> dict[int, float]:
    """Milliseconds of a forward without a draft, by load: the least of what was seen beside each number of drafts."""
    found: dict[int, float] = {}
    for one in measured:
        milliseconds = one["plain"]["round_ms"][0]
        found[one["concurrency"]] = min(milliseconds, found.get(one["concurrency"], math.inf))
    return found


def verify_ms(drafts: Drafts, load: int, forwards: dict[int, float]) -> float | None:
    """About what of a round is the target's: a forward of as many rows, without a draft, on the line between the loads
    measured; beyond the highest, on that of the last two.

    None where one load alone was measured, unless it is as many rows, or where their number changes. Contexts longer
    than the weights make it too high: here each row reads its own.
    """
    if drafts == ADAPTIVE:
        return None
    rows, loads = load * (drafts + 1), sorted(forwards)
    if rows in forwards:
        return forwards[rows]
    if len(loads) < 2:
        return None
    below, above = next((pair for pair in pairwise(loads) if rows < pair[1]), (loads[-2], loads[-1]))
    slope = max(0.0, (forwards[above] - forwards[below]) / (above - below))
    return forwards[below] + (rows - below) * slope


def recommend(measured: Sequence[Json], skipped: Sequence[Json], loads: Sequence[int]) -> Json:
    """The number of drafts whose speed-ups have the highest geometric mean over the loads; None where no load gains.

    Where a setting was left out, its bound stands for it, but is not told as a speed-up.
    """
    found = {(one["drafts"], one["concurrency"]): one["speed_up"][0] for one in measured}
    bounds = {(one["drafts"], one["concurrency"]): one["at_most"] for one in skipped}

    def mean(drafts: Drafts) -> float:
        return sum(math.log((found | bounds)[drafts, load]) for load in loads)

    gaining = {drafts for (drafts, _), faster in found.items() if faster > 1 + NOISE}
    best = max(sorted(gaining, key=order), key=mean, default=None)
    told = best if best is not None else max(sorted({drafts for drafts, _ in found}, key=order), key=mean)
    return {
        "drafts": best,
        "speed_up": {str(load): found[told, load] for load in loads if (told, load) in found},
    }


def words(recommended: Json) -> str:
    """Whether to deploy the draft, how, and what it gives at each load: a sentence without its full stop."""
    by_load = {int(load): faster for load, faster in recommended["speed_up"].items()}
    told = [f"{faster:.2f} times the tokens/s at {at_once(load)}" for load, faster in sorted(by_load.items())]
    if recommended["drafts"] is None:
        return f"do not deploy it for speed: {', '.join(told)}"
    losing = " and ".join(at_once(load) for load, faster in sorted(by_load.items()) if faster <= 1 + NOISE)
    how = a_round(recommended["drafts"])
    return f"deploy it with {how}: {', '.join(told)}" + (f"; not for speed at {losing}" if losing else "")


def a_round(drafts: Drafts) -> str:
    if drafts == ADAPTIVE:
        return "an adaptive number of drafts a round"
    return f"{drafts} draft{'s' if drafts > 1 else ''} a round"

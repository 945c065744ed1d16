"""How much a draft will accept, estimated while it trains, from how often it is right on held-out rows.

There each draft is made after the target's own tokens (teacher-forced), so that one forward judges every position; the
n-th is kept only with all those before it, whose share is then about the product of how often each is right. Real
speculation accepts more, since what is easy for one position is easy for the next: the report says by how much, once
that is measured. Imports no torch.
"""

import math
from collections.abc import Sequence
from typing import Any

DRAFTS = 3  # a round, of every method, as the evaluation asks by default

KEY = "estimated_accept_length"


def accept_length(accuracy_by_position: Sequence[float], drafts: int = DRAFTS) -> float:
    """Tokens a forward of the target, with at most so many `drafts` a round as there are positions."""
    return 1 + sum(
        math.prod(accuracy_by_position[:kept]) for kept in range(1, min(drafts, len(accuracy_by_position)) + 1)
    )


def calibration(estimated: float, measured: float) -> float | None:
    """What the drafts kept by estimate are to be multiplied by to be those of real speculation; None where none are."""
    return (measured - 1) / (estimated - 1) if estimated > 1 else None


def best(facts: dict[str, dict[str, Any]]) -> tuple[str, float] | None:
    """Of checkpoints by name, oldest first, with their markers' facts: the one with the highest estimate, the newest of
    equal ones, and the estimate. None where none has one: not evaluated at its step, or saved without `keep_best`."""
    known = {name: its[KEY] for name, its in facts.items() if its.get(KEY) is not None}
    name = max(reversed(known), key=lambda name: known[name], default=None)
    return None if name is None else (name, known[name])

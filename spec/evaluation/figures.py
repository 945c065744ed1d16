"""The figures of an evaluation and how they compare: what the offline run and the server both report."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass
class Acceptance:
    """Counts over answers; `histogram[n]` forwards kept n drafts."""

    tokens: int
    histogram: list[int]

    @property
    def forwards(self) -> int:
        return sum(self.histogram)

    @property
    def accept_length(self) -> float:
        """Tokens a forward; 1 where no forward was needed."""
        return self.tokens / self.forwards if self.forwards else 1.0

    @property
    def by_position(self) -> list[float]:
        """For the 1st, 2nd, .. draft of a chain, the share of forwards that kept it (and so all before it)."""
        return [sum(self.histogram[n + 1 :]) / max(self.forwards, 1) for n in range(len(self.histogram) - 1)]

    @property
    def accept_rate(self) -> float:
        """Drafts kept of drafts made."""
        return sum(self.by_position) / max(len(self.by_position), 1)

    def figures(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "forwards": self.forwards,
            "accept_length": self.accept_length,
            "accept_rate": self.accept_rate,
            "acceptance_by_position": self.by_position,
            "histogram": self.histogram,
        }


class Counted(NamedTuple):
    """One answer."""

    prompt: int  # its tokens
    tokens: int  # of the answer
    histogram: Sequence[int]  # [n] forwards kept n drafts


def acceptance(answers: Sequence[Counted]) -> Acceptance:
    return Acceptance(sum(answer.tokens for answer in answers), total(answer.histogram for answer in answers))


def interval(answers: Sequence[Counted]) -> list[float] | None:
    """The 95% confidence interval of the accept length, answers being what is drawn; None of fewer than two.

    Tokens over forwards is a ratio of two sums: its variance is that of the answers' tokens less the ratio times their
    forwards (Cochran, Sampling Techniques, 3rd edition, section 2.11).
    """
    forwards = [sum(answer.histogram) for answer in answers]
    count, of_all = len(answers), sum(forwards)
    if count < 2 or not of_all:
        return None
    ratio = sum(answer.tokens for answer in answers) / of_all
    squares = sum((answer.tokens - ratio * own) ** 2 for answer, own in zip(answers, forwards, strict=True))
    half = 1.96 * math.sqrt(count / (count - 1) * squares) / of_all
    return [max(1.0, ratio - half), ratio + half]


SHORTEST = 512  # tokens: contexts below are one bucket, and each next one is twice as long


def by_context(answers: Sequence[Counted]) -> list[dict[str, Any]]:
    """Figures by the length of an answer's context, its prompt and half of itself; lengths that none has are left out.

    A server counts by answer, not by position: so an answer is in one bucket, that of the middle of its tokens.
    """
    buckets: dict[int, list[Counted]] = {}
    for answer in answers:
        middle = answer.prompt + answer.tokens // 2
        ends = SHORTEST * 2 ** max(0, math.ceil(math.log2((middle + 1) / SHORTEST)))
        buckets.setdefault(ends, []).append(answer)
    return [{"below": ends, "answers": len(its), **_brief(its)} for ends, its in sorted(buckets.items())]


def _brief(answers: Sequence[Counted]) -> dict[str, Any]:
    counted = acceptance(answers)
    figures = {"tokens": counted.tokens, "forwards": counted.forwards, "accept_length": counted.accept_length}
    return figures | {"interval": interval(answers)}


def by_turn(turns: Sequence[Sequence[Counted]]) -> list[dict[str, Any]]:
    """Figures of each turn of a suite's conversations, the first one 1."""
    return [{"turn": turn, "answers": len(its), **_brief(its)} for turn, its in enumerate(turns, start=1) if its]


def total(histograms: Iterable[Sequence[int]]) -> list[int]:
    """Histograms of equal length added up."""
    return [sum(column) for column in zip(*histograms, strict=True)]


def differences(
    expected: Sequence[list[int]],
    found: Sequence[list[int]],
    prompts: Sequence[Sequence[int]],
    gap: Callable[[Sequence[int], int, int], float],
) -> list[dict[str, Any]]:
    """Where answers to the same prompts part: `prompt`, the position `at`, and the `gap` of the two tokens in nats.

    `gap(prefix, one, other)` asks a target. It is None where one answer only ends earlier than the other.
    """
    parted = []
    for number, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a != b:
            at = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
            apart = None if at is None else gap([*prompts[number], *a[:at]], a[at], b[at])
            parted.append({"prompt": number, "at": min(len(a), len(b)) if at is None else at, "gap": apart})
    return parted

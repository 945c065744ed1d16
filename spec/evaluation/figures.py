"""The figures of an evaluation and how they compare: what the offline run and the server both report."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


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

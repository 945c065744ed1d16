"""What an evaluation is asked for. Needs no torch: preflight reads the words of a command line with it too."""

from dataclasses import dataclass

OWN = "own"  # as a suite: the run's held-out prompts, which every evaluation asks
LOAD = 8  # requests at once to a server, where nobody names a number


@dataclass(frozen=True)
class Settings:
    prompts: int = 32
    max_new_tokens: int = 128
    drafts: int = 3  # a round
    concurrency: int | None = None  # requests at once to a server; None: 8, or as many as there are prompts
    without: frozenset[str] = frozenset()  # parts that the report is to do without
    temperature: float = 0.0  # 0: greedy


@dataclass(frozen=True)
class OfSuites:
    """Less than what published figures were measured with, for a look; None: as much."""

    prompts: int | None = None
    max_new_tokens: int | None = None
    own_max_new_tokens: int = 128  # of a file of one's own

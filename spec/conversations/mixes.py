"""Several datasets in one run, each with a weight: rows in turn, so that at any row each has its share.

The next row is always of the dataset that is furthest behind its share, so that every worker meets the same rows in the
same order. The mix ends where the dataset whose turn it is has no more: then the shares are those that were asked for.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from spec.conversations.shapes import Read
from spec.conversations.sources import Source, at_hand, open_source
from spec.errors import BadInput


class Dataset(NamedTuple):
    """One name of the command line, and what is said of it."""

    name: str
    weight: float
    split: str
    config: str | None
    revision: str | None
    column: str | None


@dataclass(frozen=True)
class Mix:
    """Rows of several sources; reads as a `Source` does."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    limit: int | None

    @property
    def lineage(self) -> dict[str, Any]:
        shares = [round(weight / sum(self.weights), 6) for weight in self.weights]
        parts = [
            {**source.lineage, "weight": weight, "share": share}
            for source, weight, share in zip(self.sources, self.weights, shares, strict=True)
        ]
        return {"name": " + ".join(part["name"] for part in parts), "limit": self.limit, "mix": parts}

    @property
    def total(self) -> int | None:
        """About how many rows it has: as many as fit the shares; None where nobody knows beforehand."""
        rows = rows_that_fit([source.total for source in self.sources], self.weights)
        return min((count for count in (rows, self.limit) if count is not None), default=None)

    @property
    def holds_requests(self) -> bool:
        return any(source.holds_requests for source in self.sources)

    def read(self) -> Iterator[Read]:
        return islice(self._read(), self.limit)

    def _read(self) -> Iterator[Read]:
        rows = [source.read() for source in self.sources]
        taken = [0] * len(rows)
        while True:
            behind = [(count + 1) / weight for count, weight in zip(taken, self.weights, strict=True)]
            turn = behind.index(min(behind))
            row = next(rows[turn], None)
            if row is None:
                return
            taken[turn] += 1
            yield row


def rows_that_fit(totals: Sequence[int | None], weights: Sequence[float]) -> int | None:
    """How many rows datasets of so many come to by their shares; None where nobody knows one's."""
    if None in totals:
        return None
    return int(min((total or 0) * sum(weights) / weight for total, weight in zip(totals, weights, strict=True)))


def named(
    names: Sequence[str],
    weights: str = "",
    *,
    splits: Sequence[str] = (),
    configs: Sequence[str] = (),
    revisions: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> list[Dataset]:
    """The datasets of a command line: of each option one value for all of them, or one each, "" for its default.

    `weights` are numbers separated by spaces, one each. Where there are several of them and one name, the names are its
    words: a workflow's parameter is one text. Raises `BadInput`.
    """
    numbers = [_weight(word) for word in weights.split()]
    if len(numbers) > 1 and len(names) == 1:
        names = names[0].split()
        splits, configs, revisions, columns = (
            its[0].split() if len(its) == 1 else its for its in (splits, configs, revisions, columns)
        )
    elif len(names) == 1:
        numbers = [1.0]
    if not all(name.strip() for name in names):
        raise BadInput("--dataset-name: none is named; an empty name would be this folder")
    if len(numbers) != len(names):
        given = f'--weights "{weights}"' if weights else "--weights is missing"
        raise BadInput(f'{given}: {len(names)} datasets want a weight each, as --weights "2 1"')
    if len(set(names)) < len(names):
        raise BadInput(f"--dataset-name: {max(names, key=list(names).count)} is given twice; give it a larger weight")
    return [
        Dataset(name, weight, split or "train", config or None, revision or None, column or None)
        for name, weight, split, config, revision, column in zip(
            names,
            numbers,
            _each("--dataset-split", splits, len(names)),
            _each("--dataset-config", configs, len(names)),
            _each("--dataset-revision", revisions, len(names)),
            _each("--column", columns, len(names)),
            strict=True,
        )
    ]


def as_begun(datasets: list[Dataset], begun: dict[str, Any]) -> list[Dataset]:
    """With the commits that a run (`dataset` of its `run.json`) was begun with, where no other is asked for."""
    there = {part.get("name"): part.get("revision") for part in begun.get("mix", [begun])}
    return [its._replace(revision=its.revision or there.get(its.name)) for its in datasets]


@contextmanager
def opened(datasets: list[Dataset], *, pattern: bool, limit: int | None) -> Iterator[Source | Mix]:
    """The one source, or the mix of several, readable for as long as the block. Raises as `open_source` does."""
    with ExitStack() as stack:
        sources = [
            open_source(
                stack.enter_context(at_hand(its.name, pattern=pattern)),
                split=its.split,
                config=its.config,
                revision=its.revision,
                column=its.column,
                limit=limit,  # a mix of so many has no more of any
                pattern=pattern,
            )
            for its in datasets
        ]
        yield sources[0] if len(sources) == 1 else Mix(tuple(sources), tuple(its.weight for its in datasets), limit)


def _weight(word: str) -> float:
    try:
        number = float(word)
    except ValueError as error:
        raise BadInput(f"--weights: {word}: not a number") from error
    if not (number > 0 and math.isfinite(number)):
        raise BadInput(f"--weights: {word}: above 0, please")
    return number


def _each(option: str, values: Sequence[str], count: int) -> Sequence[str]:
    if count == 1:
        return values[-1:] or [""]
    if len(values) <= 1:
        return [*values, ""][:1] * count
    if len(values) != count:
        raise BadInput(f"{option}: {len(values)} values for {count} datasets; give one for all, or one each")
    return values

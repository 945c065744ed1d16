"""Which rows of a batch draft what, by its documents and loss mask alone: made on the host, ahead of the step.

Whether the target's own choice is in the draft's vocabulary is known on the device only. Rows where it is not stay,
with weight 0: to leave them out, the host would have to wait for the target.
"""

from dataclasses import dataclass

import torch

from spec.attention.block0 import Queries
from spec.attention.documents import Documents
from spec.training.batch import Batch


@dataclass(frozen=True)
class Rows:
    """N are the batch's tokens without padding, J those that bear loss and can be drafted.

    A (`queries.rows`) are the tokens at which any step drafts: a later step's key is read by its own position alone, so
    the others are needed for block 0's keys and nothing else.
    """

    input_ids: torch.Tensor  # [N] int64
    positions: torch.Tensor  # [N] int64, in each document
    seen: torch.Tensor  # [J] int64, where in the batch flattened to [B * T] the target chooses a token that bears loss
    rows: torch.Tensor  # [K, J] int64, the row of step k that drafts it, among the K * A of all steps; any if none does
    bears: torch.Tensor  # [K, J] bool, whether one does
    queries: Queries
    every: Queries | None = None  # all N, where layers above need what the first ones make of each token


def drafted_rows(batch: Batch, steps: int, layers: int = 1) -> Rows:
    """The rows of `batch`, which is still on the host, for a draft of so many `layers`."""
    documents = batch.documents
    tokens = documents.tokens  # [N]
    positions = documents.position_ids.flatten()[tokens]
    answers = batch.loss_mask.flatten()[tokens] & (positions >= 2)  # nothing drafts a document's first two tokens
    seen = answers.nonzero().squeeze(1) - 1  # [J], where the target chooses a token that bears loss
    shift = torch.arange(1, steps + 1)[:, None]  # step k drafts from k + 1 positions before
    bears = positions[seen] >= shift  # [K, J]
    at = (seen - shift).clamp_min(0)  # [K, J], an index into the N tokens
    needed = torch.zeros_like(answers)
    needed[at[bears]] = True
    slot = (needed.cumsum(0) - 1).clamp_min(0)  # of each of the N tokens among the A rows
    first = torch.arange(steps)[:, None] * int(needed.sum())  # of each step's A rows
    every = torch.ones_like(needed) if layers > 1 else None
    return Rows(
        input_ids=batch.input_ids.flatten()[tokens],
        positions=positions,
        seen=tokens[seen],
        rows=torch.where(bears, slot[at] + first, 0),
        bears=bears,
        queries=_queries(needed, documents),
        every=None if every is None else _queries(every, documents),
    )


def _queries(chosen: torch.Tensor, documents: Documents) -> Queries:
    return Queries.of_runs(_runs(chosen, documents.lengths), documents.cu_seqlens, max(documents.lengths))


def _runs(needed: torch.Tensor, lengths: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """The runs of `needed [N]` bool as (their document's first token, start, end)."""
    runs, first = [], 0
    for length in lengths:
        flags = needed[first : first + length].int()
        edges = torch.diff(flags, prepend=torch.zeros(1), append=torch.zeros(1))
        starts, ends = ((edges == sign).nonzero().squeeze(1).add(first).tolist() for sign in (1, -1))
        runs += [(first, start, end) for start, end in zip(starts, ends, strict=True)]
        first += length
    return runs

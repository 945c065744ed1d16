"""Where the blocks of a batch begin, and which of their drafts bear loss: known before anything is computed.

Anchors are drawn at random for each document, anew in each epoch, from the seed, the epoch and the row's id alone. So a
resumed run needs no random state to draw the same ones, and how rows are packed or dealt out changes none.

An anchor is a token whose own and whose next bear loss. Draft j of its block, the token j + 1 after it, bears loss if
all tokens from the anchor up to it do and lie in its document: what comes after a gap the server would never draft.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch

from spec.attention.documents import Documents


class Chunk(NamedTuple):
    """Whole blocks whose drafts that bear loss are looked at together."""

    begin: int  # drafts begin..stop of the M
    stop: int
    low: int  # the places low..high of the J are theirs
    high: int


@dataclass(frozen=True)
class Blocks:
    """P blocks of a batch, in order, and their M drafts that bear loss, block by block. N tokens, without padding."""

    firsts: tuple[int, ...]  # of each block, its document's first token, an index into the N
    places: tuple[int, ...]  # its anchor
    labels: tuple[int, ...]  # how many of its drafts bear loss: the first ones
    slots: tuple[int, ...]  # where among the J its anchor stands
    count: torch.Tensor  # [drafts] int64, the blocks whose draft j bears loss
    anchors: torch.Tensor  # [P] int64, `places` again
    block: torch.Tensor  # [M] int64, whose draft it is
    draft: torch.Tensor  # [M] int64, which one of the block, from 0
    chosen: torch.Tensor  # [J] int64, ascending: the tokens at which the target chooses any of the M
    slot: torch.Tensor  # [M] int64, which of the J

    def to(self, device: torch.device | str) -> "Blocks":
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.type is torch.Tensor}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def chunks(self, most: int) -> list[Chunk]:
        """All M drafts by whole blocks, at most `most` drafts together (or one block's)."""
        chunks: list[Chunk] = []
        begin = stop = low = 0
        for block, labels in enumerate(self.labels):
            if stop > begin and stop + labels - begin > most:
                chunks.append(Chunk(begin, stop, low, self._end(block - 1)))
                begin, low = stop, self.slots[block]
            stop += labels
        if stop > begin:
            chunks.append(Chunk(begin, stop, low, self._end(len(self.labels) - 1)))
        return chunks

    def _end(self, block: int) -> int:
        return self.slots[block] + self.labels[block]


def draw(
    documents: Documents,
    loss_mask: torch.Tensor,
    row_ids: Sequence[int],
    *,
    drafts: int,
    most: int,
    seed: int,
    epoch: int | None,
) -> Blocks:
    """The blocks of a batch, on the host: `loss_mask [B, T]` bool is there, and no device is asked.

    `row_ids` are the ids of `documents.spans`, `drafts` the tokens that a block drafts, `most` the most anchors of a
    document. `epoch` None draws what is the same at any time: the held-out rows' anchors.
    """
    mask, first = loss_mask.numpy(), 0
    firsts: list[int] = []
    places, labels = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for (row, start, end), row_id in zip(documents.spans, row_ids, strict=True):
        gaps = _tokens_to_gap(mask[row, start:end])
        possible = np.flatnonzero(gaps[1:] > 1) + 1  # a document's first token has no context to draft from
        if len(possible) > most:
            key = (seed, row_id) if epoch is None else (seed, row_id, epoch)
            possible = np.sort(np.random.default_rng(key).choice(possible, most, replace=False))
        firsts += [first] * len(possible)
        places.append(first + possible)
        labels.append(np.minimum(gaps[possible] - 1, drafts))
        first += end - start
    return _blocks(firsts, np.concatenate(places), np.concatenate(labels), drafts)


def _tokens_to_gap(mask: np.ndarray) -> np.ndarray:
    """`[T]` int64: how many tokens in a row bear loss from each one on; 0 where it does not."""
    at = np.arange(len(mask))
    gap = np.where(mask, len(mask), at)
    return np.minimum.accumulate(gap[::-1])[::-1] - at


def _blocks(firsts: list[int], places: np.ndarray, labels: np.ndarray, drafts: int) -> Blocks:
    block = np.repeat(np.arange(len(places)), labels)
    draft = np.arange(len(block)) - np.repeat(np.cumsum(labels) - labels, labels)
    chosen, slot = np.unique(places[block] + draft, return_inverse=True)
    return Blocks(
        firsts=tuple(firsts),
        places=tuple(places.tolist()),
        labels=tuple(labels.tolist()),
        slots=tuple(np.searchsorted(chosen, places).tolist()),
        count=torch.from_numpy(np.bincount(draft, minlength=drafts)),
        anchors=torch.from_numpy(places),
        block=torch.from_numpy(block),
        draft=torch.from_numpy(draft),
        chosen=torch.from_numpy(chosen),
        slot=torch.from_numpy(slot),
    )

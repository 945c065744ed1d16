"""A batch of training rows: token ids, the tokens that bear loss, and the documents they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spec.attention.documents import Documents


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor  # [B, T] int64, 0 on padding
    loss_mask: torch.Tensor  # [B, T] bool: this token is an assistant's
    documents: Documents
    row_ids: tuple[int, ...]  # of each document: what it is known by in any batch, epoch or preparation

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(self.input_ids.to(device), self.loss_mask.to(device), self.documents.to(device), self.row_ids)


def collate(
    bins: Sequence[Sequence[tuple[Any, Any]]], length: int | None = None, row_ids: Sequence[int] | None = None
) -> Batch:
    """One row of the batch per bin; a bin is the documents packed into it, each as (token ids, loss mask).

    `row_ids` are the documents' (default: 0, 1, ..). A batch that is not packed has one document a bin. `length` is T
    (default: the fullest bin); ValueError if a bin does not fit: cutting documents is packing's business, where it is
    counted.
    """
    lengths = [[len(ids) for ids, _ in documents] for documents in bins]
    width = length if length is not None else max(sum(row) for row in lengths)
    documents = Documents.from_lengths(lengths, width)
    input_ids = torch.zeros(len(bins), width, dtype=torch.int64)
    loss_mask = torch.zeros(len(bins), width, dtype=torch.bool)
    rows = [document for row in bins for document in row]
    for (row, start, end), (ids, mask) in zip(documents.spans, rows, strict=True):
        input_ids[row, start:end] = torch.tensor(ids)  # a copy: memory-mapped rows are read-only
        loss_mask[row, start:end] = torch.tensor(mask).bool()
    return Batch(input_ids, loss_mask, documents, tuple(row_ids if row_ids is not None else range(len(rows))))

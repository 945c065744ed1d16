"""Where each document of a packed or padded batch begins and ends: the one description that every part reads.

The target attends within documents, the draft's first block does too, positions restart in each, and no shifted token,
target or mask crosses a document's end. All of it follows from the spans below.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Documents:
    """The documents of a `[B, T]` batch, in the order of their tokens; whatever they do not cover is padding."""

    spans: tuple[tuple[int, int, int], ...]  # (row, start, end), end exclusive, ascending, none empty
    position_ids: torch.Tensor  # [B, T] int64, restarting at 0 in each document; 0 on padding
    document_ids: torch.Tensor  # [B, T] int64, the index into spans; -1 on padding

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[Sequence[int]], width: int, device: torch.device | str = "cpu"
    ) -> "Documents":
        """Documents packed from the left: `lengths[row]` are that row's, `width` is T; ValueError if they overflow."""
        position_ids = torch.zeros(len(lengths), width, dtype=torch.int64)
        document_ids = torch.full((len(lengths), width), -1, dtype=torch.int64)
        spans: list[tuple[int, int, int]] = []
        for row, row_lengths in enumerate(lengths):
            start = 0
            for length in row_lengths:
                end = start + length
                if length < 1 or end > width:
                    raise ValueError(f"row {row}: documents of lengths {list(row_lengths)} do not fit {width} slots")
                position_ids[row, start:end] = torch.arange(length)
                document_ids[row, start:end] = len(spans)
                spans.append((row, start, end))
                start = end
        return cls(tuple(spans), position_ids.to(device), document_ids.to(device))

    def to(self, device: torch.device | str) -> "Documents":
        return Documents(self.spans, self.position_ids.to(device), self.document_ids.to(device))

    @cached_property
    def tokens(self) -> torch.Tensor:
        """`[N]` int64: where the N tokens that are no padding stand in the batch flattened to `[B * T]`."""
        return (self.document_ids.flatten() >= 0).nonzero().squeeze(1)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(end - start for _, start, end in self.spans)

    @cached_property
    def cu_seqlens(self) -> torch.Tensor:
        """`[documents + 1]` int32: where each document begins in the N tokens, and N at the end."""
        ends = torch.tensor((0, *self.lengths)).cumsum(0)
        return ends.to(self.position_ids.device, torch.int32)

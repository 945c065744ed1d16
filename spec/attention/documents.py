"""Where each document of a packed or padded batch begins and ends: the one description that every part reads.

The target attends within documents, the draft's first block does too, positions restart in each, and no shifted token,
target or mask crosses a document's end. All of it follows from the lengths, and is made on the host before a batch goes
to its device: there nothing has to be asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from spec.attention.to_device import to_device


@dataclass(frozen=True)
class Documents:
    """The documents of a `[B, T]` batch, in the order of their tokens; whatever they do not cover is padding."""

    spans: tuple[tuple[int, int, int], ...]  # (row, start, end), end exclusive, ascending, none empty
    position_ids: torch.Tensor  # [B, T] int64, restarting at 0 in each document; 0 on padding
    document_ids: torch.Tensor  # [B, T] int64, the index into spans; -1 on padding
    tokens: torch.Tensor  # [N] int64: where the N tokens that are no padding stand in the batch flattened to [B * T]
    cu_seqlens: torch.Tensor  # [documents + 1] int32: where each document begins in the N tokens, and N at the end
    cut: dict[int, "Documents"] = field(default_factory=dict, compare=False, repr=False)  # by the size of `chunked`

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[Sequence[int]], width: int, device: torch.device | str = "cpu"
    ) -> "Documents":
        """Documents packed from the left: `lengths[row]` are that row's, `width` is T; ValueError if they overflow."""
        position_ids = torch.zeros(len(lengths), width, dtype=torch.int64, device="cpu")
        document_ids = torch.full((len(lengths), width), -1, dtype=torch.int64, device="cpu")
        spans: list[tuple[int, int, int]] = []
        for row, row_lengths in enumerate(lengths):
            start = 0
            for length in row_lengths:
                end = start + length
                if length < 1 or end > width:
                    raise ValueError(f"row {row}: documents of lengths {list(row_lengths)} do not fit {width} slots")
                position_ids[row, start:end] = torch.arange(length, device="cpu")
                document_ids[row, start:end] = len(spans)
                spans.append((row, start, end))
                start = end
        tokens = (document_ids.flatten() >= 0).nonzero().squeeze(1)
        documents = cls(tuple(spans), position_ids, document_ids, tokens, _cu_seqlens(spans))
        return documents if str(device) == "cpu" else to_device(documents, torch.device(device))

    def chunked(self, size: int) -> "Documents":
        """The same tokens, each document cut every `size` positions: what a layer of chunked attention sees."""
        if size not in self.cut:
            spans = [(row, at, min(at + size, end)) for row, start, end in self.spans for at in range(start, end, size)]
            cu_seqlens = _cu_seqlens(spans).to(self.cu_seqlens.device, non_blocking=True)
            self.cut[size] = replace(self, spans=tuple(spans), cu_seqlens=cu_seqlens, cut={})
        return self.cut[size]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(end - start for _, start, end in self.spans)


def _cu_seqlens(spans: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    lengths = (end - start for _, start, end in spans)
    return torch.tensor((0, *lengths), device="cpu").cumsum(0).int()

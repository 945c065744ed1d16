"""The work that the contenders do: a random draft, a batch of chats, and a target whose features are ready.

The target's own forward is the same for every contender and left out; its head is not: what becomes of the target's
vocabulary is half of the difference.
"""

from dataclasses import dataclass

import numpy as np
import torch

from spec.methods.eagle3.config import DraftConfig
from spec.methods.eagle3.draft import EagleDraft
from spec.target.frozen import Features
from spec.training.batch import Batch, collate

TURN = 128  # tokens of a question and of an answer, in turns: half the positions bear loss


@dataclass(frozen=True)
class Work:
    """Sizes of one training step: `batch` rows of one document of `length` tokens."""

    length: int = 1024
    batch: int = 2
    steps: int = 7
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 1536
    target_vocab: int = 32_000
    draft_vocab: int = 8_000

    def draft(self) -> EagleDraft:
        """Random weights, a random draft vocabulary; the same at every call."""
        torch.manual_seed(0)
        draft = EagleDraft(
            DraftConfig(
                hidden_size=self.hidden,
                target_hidden_size=self.hidden,
                intermediate_size=self.intermediate,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads,
                head_dim=self.hidden // self.heads,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                vocab_size=self.target_vocab,
                draft_vocab_size=self.draft_vocab,
                max_position_embeddings=2 * self.length,
                feature_layers=(1, 3, 4),
            )
        )
        known = torch.randperm(self.target_vocab)[: self.draft_vocab].sort().values
        t2d = torch.zeros(self.target_vocab, dtype=torch.bool)
        t2d[known] = True
        draft.set_vocabulary(known - torch.arange(self.draft_vocab), t2d)
        return draft

    def chats(self) -> Batch:
        generator = torch.Generator().manual_seed(1)
        bears = (np.arange(self.length) // TURN) % 2 == 1
        ids = torch.randint(self.target_vocab, (self.batch, self.length), generator=generator)
        return collate([[(row, bears)] for row in ids.numpy()])


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """Where contenders run: on a GPU in bf16, else on the CPU in fp32."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    return torch.device("cpu"), torch.float32


class FixedTarget:
    """Random features and head. The target's choice nearly always is a draft token, as with a counted vocabulary."""

    def __init__(self, work: Work, t2d: torch.Tensor, device: torch.device, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(2)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        head = random(work.target_vocab, work.hidden) * 4 / work.hidden**0.5
        head[~t2d.cpu()] *= 0.5
        self.head_weight = head.to(device, dtype)  # [V, H]
        self.embed_weight = random(work.target_vocab, work.hidden).to(device, dtype)  # [V, H]
        self.aux = random(work.batch, work.length, 3 * work.hidden).to(device, dtype)  # [B, T, 3H]
        self.last = random(work.batch, work.length, work.hidden).to(device, dtype)  # [B, T, H]

    def features(self, input_ids: torch.Tensor, documents, layers) -> Features:
        return Features(self.aux, self.last)

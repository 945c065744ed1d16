"""The block draft's step, ours and plain, in a process of its own; `bench.rounds` starts it. Prints one line of JSON.

python3 -m bench.blocks '{"contender": "fast", "timed": 2, "work": {"length": 2048, "markov_rank": 0}}'
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bench.contender import timed_steps
from bench.memory import give_back_what_is_freed
from bench.plain_blocks import plain_loss
from bench.work import TURN, device_and_dtype
from spec.methods.block.anchors import Blocks, draw
from spec.methods.block.config import BlockDraftConfig
from spec.methods.block.draft import BlockDraft
from spec.methods.block.losses import DFLASH, DSPARK, decay_of, decay_weights
from spec.methods.block.step import Observation, step_loss
from spec.training.batch import Batch, collate


@dataclass(frozen=True)
class BlockWork:
    """Sizes of one training step: one document of `length` tokens, half of which bear loss."""

    length: int = 2048
    anchors: int = 128
    block_size: int = 8
    markov_rank: int = 0
    layers: int = 2
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 1536
    features: int = 5
    vocab: int = 32_000

    def draft(self) -> BlockDraft:
        """Random weights, the same at every call."""
        torch.manual_seed(0)
        draft = BlockDraft(
            BlockDraftConfig(
                hidden_size=self.hidden,
                intermediate_size=self.intermediate,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads,
                head_dim=self.hidden // self.heads,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                vocab_size=self.vocab,
                max_position_embeddings=2 * self.length,
                num_target_layers=36,
                feature_layers=tuple(range(1, self.features + 1)),
                block_size=self.block_size,
                mask_token_id=self.vocab - 1,
                markov_rank=self.markov_rank,
            )
        )
        if draft.markov_head:
            torch.nn.init.normal_(draft.markov_head.markov_w2.weight)
        return draft

    def chat(self) -> Batch:
        ids = torch.randint(self.vocab - 1, (self.length,), generator=torch.Generator().manual_seed(1))
        return collate([[(ids.numpy(), (np.arange(self.length) // TURN) % 2 == 1)]])

    def blocks(self, batch: Batch, drafts: int) -> Blocks:
        return draw(batch.documents, batch.loss_mask, [0], drafts=drafts, most=self.anchors, seed=0, epoch=0)

    def observation(self, batch: Batch, device: torch.device, dtype: torch.dtype) -> Observation:
        """The target's random features; its last hidden state where the loss asks for its distribution."""
        generator = torch.Generator().manual_seed(2)
        aux = torch.randn(self.length, self.features * self.hidden, generator=generator)
        last = torch.randn(self.length, self.hidden, generator=generator)
        return Observation(
            batch.input_ids[0].to(device),
            batch.documents.position_ids[0].to(device),
            aux.to(device, dtype),
            last.to(device, dtype) if self.markov_rank else None,
        )

    def target_weights(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        embed, head = torch.randn(2, self.vocab, self.hidden, generator=generator)
        return embed.to(device, dtype), (head * 4 / self.hidden**0.5).to(device, dtype)


def _fast(**how: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    def contender(draft, seen, blocks, weights, objective):
        result = step_loss(draft, seen, blocks, weights, objective=objective, **how)
        return result.loss, result.weight, result.correct

    return contender


CONTENDERS = {"plain": plain_loss, "fast": _fast(), "recompute": _fast(checkpoint_layers=True)}


def prepare_step(
    contender: str, work: BlockWork, device: torch.device, dtype: torch.dtype
) -> Callable[[], tuple[float, float, list[int]]]:
    """A forward and a backward, ready to run; gives the loss, the gradient's norm and the right choices by draft."""
    draft = work.draft().to(device, dtype)
    draft.share_target(*work.target_weights(device, dtype))
    batch = work.chat()
    seen, blocks = work.observation(batch, device, dtype), work.blocks(batch, draft.config.drafts).to(device)
    weights = decay_weights(draft.config.drafts, decay_of(work.block_size, work.markov_rank), device)
    objective = DSPARK if work.markov_rank else DFLASH

    def step() -> tuple[float, float, list[int]]:
        draft.zero_grad()
        loss, weight, correct = CONTENDERS[contender](draft, seen, blocks, weights, objective)
        loss.backward()
        gradients = [p.grad for p in draft.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) / weight
        return (loss / weight).item(), norm.item(), correct.tolist()  # waits for the device

    return step


def measure(contender: str, work: BlockWork, timed: int) -> dict[str, Any]:
    """What `timed_steps` says of `contender`'s step; its memory is that of one more step, see `bench.memory`."""
    device, dtype = device_and_dtype()
    prepare_step(contender, replace(work, length=512, anchors=16, vocab=512), device, dtype)()
    step = prepare_step(contender, work, device, dtype)
    measured = timed_steps(step, timed, device)
    give_back_what_is_freed()
    return measured | {"memory": timed_steps(step, 0, device)["memory"]}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure(asked["contender"], BlockWork(**asked["work"]), asked["timed"])))

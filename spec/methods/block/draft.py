"""The block draft: bidirectional layers over a block of mask tokens that read the target's features as context.

One class serves DFlash (`markov_rank` 0) and DSpark (above 0: the logits of a draft get a bias looked up by the token
before it). Its parameters have the names that SGLang 0.5.23's `DFlashDraftModel` and `DSparkDraftModel` load, so a
checkpoint and an export are the same tensors. What a block attends to is the caller's: training attends to many blocks
of many documents at once, inference to one block and a cache.

Row 0 of a block is its anchor, the newest real token; the other rows are the mask token. Draft j, counted from 0, is
the anchor's token j + 1 on: of DFlash's rows the one before it is not read, so row j + 1 makes it; of DSpark's row j.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from spec.errors import BadInput
from spec.methods.block.config import BlockDraftConfig
from spec.methods.layers import LeanMlp, LeanNorm, Rope, rotate

# (query [P, B, heads, D], key [P, B, kv_heads, D], value, context key [N, kv_heads, D], context value), keys and query
# rotated -> [P, B, heads, D]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Tables = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, as Rope.tables gives them


class SelfAttention(nn.Module):
    """Projections, and norms over each head's D numbers."""

    def __init__(self, config: BlockDraftConfig):
        super().__init__()
        hidden, size = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * size, bias=False)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * size, bias=False)
        self.v_proj = nn.Linear(hidden, config.num_key_value_heads * size, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * size, hidden, bias=False)
        self.q_norm = LeanNorm(size, config.rms_norm_eps)
        self.k_norm = LeanNorm(size, config.rms_norm_eps)
        self.head_dim = size

    def query(self, x: torch.Tensor, tables: Tables) -> torch.Tensor:
        """`x [.., H]` -> `[.., heads, D]`, normed and rotated."""
        return rotate(self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim))), *tables)

    def key_value(self, x: torch.Tensor, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """`x [.., H]` -> the key, normed and rotated, and the value, both `[.., kv_heads, D]`."""
        key = rotate(self.k_norm(self.k_proj(x).unflatten(-1, (-1, self.head_dim))), *tables)
        return key, self.v_proj(x).unflatten(-1, (-1, self.head_dim))


class Layer(nn.Module):
    """A decoder layer. Keys and values of the context come from `context` as it is, without `input_layernorm`."""

    def __init__(self, config: BlockDraftConfig):
        super().__init__()
        self.input_layernorm = LeanNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LeanNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.mlp = LeanMlp(config)

    def forward(
        self, hidden: torch.Tensor, context: torch.Tensor, of_block: Tables, of_context: Tables, attend: Attend
    ) -> torch.Tensor:
        """`hidden [P, B, H]` of the blocks, `context [N, H]` -> the next hidden `[P, B, H]`."""
        attention, x = self.self_attn, self.input_layernorm(hidden)
        own = attention.key_value(x, of_block)
        attended = attend(attention.query(x, of_block), *own, *attention.key_value(context, of_context))
        hidden = hidden + attention.o_proj(attended.flatten(-2))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class MarkovHead(nn.Module):
    """DSpark's bias of a draft's logits, `W2 W1[the token before]`."""

    def __init__(self, config: BlockDraftConfig):
        super().__init__()
        self.markov_w1 = nn.Embedding(config.vocab_size, config.markov_rank)
        self.markov_w2 = nn.Linear(config.markov_rank, config.vocab_size, bias=False)
        nn.init.normal_(self.markov_w1.weight, std=config.markov_rank**-0.5)
        nn.init.zeros_(self.markov_w2.weight)  # no bias until something is learnt


class ConfidenceHead(nn.Module):
    """The logit of how much of a draft's distribution is the target's, from the normed hidden and the row of W1."""

    def __init__(self, config: BlockDraftConfig):
        super().__init__()
        self.proj = nn.Linear(config.hidden_size + config.markov_rank, 1)


class BlockDraft(nn.Module):
    """fc over the features, decoder layers and a norm; DSpark's Markov head. See `BlockDraftConfig` for the shapes.

    `embed_tokens` and `target_head`, both `[V, H]`, are the target's, frozen and in no checkpoint: see `share_target`.
    """

    embed_tokens: torch.Tensor | None
    target_head: torch.Tensor | None

    def __init__(self, config: BlockDraftConfig):
        super().__init__()
        self.config = config
        self.fc = nn.Linear(len(config.feature_layers) * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = LeanNorm(config.hidden_size, config.rms_norm_eps)  # of the context
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = LeanNorm(config.hidden_size, config.rms_norm_eps)
        self.markov_head = MarkovHead(config) if config.markov_rank else None
        self.confidence_head = ConfidenceHead(config) if config.confidence_head else None
        self.rope = Rope(config)
        self.register_buffer("embed_tokens", None, persistent=False)
        self.register_buffer("target_head", None, persistent=False)

    def share_target(self, embed: torch.Tensor, head: torch.Tensor) -> None:
        """Uses the target's embedding and head, both `[V, H]`, as they are, no copy. `BadInput` if they do not fit."""
        wanted = (self.config.vocab_size, self.config.hidden_size)
        if tuple(embed.shape) != wanted or tuple(head.shape) != wanted:
            raise BadInput(
                f"the draft was made for a target whose embedding and head are {list(wanted)}; this one's are "
                f"{list(embed.shape)} and {list(head.shape)}"
            )
        self.embed_tokens, self.target_head = embed.detach(), head.detach()

    def context(self, aux: torch.Tensor) -> torch.Tensor:
        """`aux [.., K * H]`, the features, -> `[.., H]`, what every layer's keys and values read."""
        return self.hidden_norm(self.fc(aux.to(self.fc.weight.dtype)))

    def block(self, anchors: torch.Tensor, rows: int) -> torch.Tensor:
        """`anchors [P]`, their tokens, -> the inputs `[P, rows, H]` of their blocks: the anchor, then mask tokens."""
        if self.embed_tokens is None:
            raise RuntimeError("share_target() comes before the first step")
        ids = torch.full((len(anchors), rows), self.config.mask_token_id, device=anchors.device)
        ids[:, 0] = anchors
        return F.embedding(ids, self.embed_tokens).to(self.fc.weight.dtype)

    def forward(self, body: Callable[..., Any], *args: Any) -> Any:
        """Runs `body(draft, *args)`. FSDP2 gathers the parameters around `forward`, so a step runs inside it."""
        return body(self, *args)

"""The EAGLE-3 draft: a decoder layer, or a few, over the target's features, the same class for every target.

Its parameters have the names that SGLang 0.5.23's `LlamaForCausalLMEagle3` loads, so a checkpoint and an export are the
same tensors. What the layer attends to is the caller's: training attends to block 0 and the diagonals of the
training-time test, inference to a cache.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from spec.errors import BadInput
from spec.methods.eagle3.config import DraftConfig
from spec.methods.layers import Mlp, Rope, rotate

# (query [.., heads, D], key [.., kv_heads, D], value [.., kv_heads, D]), all rotated -> [.., heads, D]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class SelfAttention(nn.Module):
    def __init__(self, config: DraftConfig, width: int):
        super().__init__()
        queries = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(width, queries, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)


class Layer(nn.Module):
    """A decoder layer. Its attention reads `hidden_norm(h)`; `h` un-normed is the residual, and the output is the next
    layer's `h`, before any norm.

    It comes in pieces, since training computes some of them once for all steps; `forward` is their composition.
    """

    def __init__(self, config: DraftConfig, *, reads_embedding: bool = False):
        super().__init__()
        self.head_dim = config.head_dim
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        if reads_embedding:
            self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)  # of the embedding
        self.hidden_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)  # in the first layer, of the feature
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, config.hidden_size * (2 if reads_embedding else 1))
        self.mlp = Mlp(config)
        self.rope = Rope(config)

    def qkv_weight(self) -> torch.Tensor:
        """The weights of q, k and v, `[(heads + 2 kv_heads) D, H]`."""
        attention = self.self_attn
        return torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))

    def qkv(
        self,
        embed_half: torch.Tensor | None,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q `[.., heads, D]` and k, rotated by the `tables` of their positions, and v, both `[.., kv_heads, D]`.

        `embed_half`: what the token adds to them in a `Midlayer`.
        """
        x = F.linear(self.hidden_norm(hidden), weight)
        x = x if embed_half is None else embed_half + x
        x = x.unflatten(-1, (-1, self.head_dim))
        query, key, value = x.split((self.heads, self.kv_heads, self.kv_heads), dim=-2)
        return rotate(query, *tables), rotate(key, *tables), value.contiguous()  # a view would keep all of x

    def after_attention(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The residual `hidden [.., H]` and `attended [.., heads, D]` -> the next hidden `[.., H]`."""
        hidden = hidden + self.self_attn.o_proj(attended.flatten(-2))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """`hidden [.., H]`, `positions [..]` -> the next hidden `[.., H]`."""
        tables = self.rope.tables(positions, hidden.dtype)
        return self.after_attention(hidden, attend(*self.qkv(None, hidden, self.qkv_weight(), tables)))


class Midlayer(Layer):
    """The first layer, whose attention reads `cat(input_layernorm(embedding), hidden_norm(h))`.

    The projection of that concatenation is the sum of its halves', and the embedding's half hangs on the token alone.
    """

    def __init__(self, config: DraftConfig):
        super().__init__(config, reads_embedding=True)

    def qkv_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The embedding's and the hidden's half of `qkv_weight`: each `[(heads + 2 kv_heads) D, H]`."""
        weight = self.qkv_weight()
        return weight[:, : weight.shape[1] // 2], weight[:, weight.shape[1] // 2 :]

    def embed_half(self, embeds: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`embeds [.., H]` -> its part `[.., (heads + 2 kv_heads) D]` of q, k and v."""
        return F.linear(self.input_layernorm(embeds), weight)

    def forward(  # type: ignore[override]  # it reads a token as well
        self, embeds: torch.Tensor, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """`embeds [.., H]`, `hidden [.., H]`, `positions [..]` -> the next hidden `[.., H]`."""
        of_embeds, of_hidden = self.qkv_weights()
        tables = self.rope.tables(positions, hidden.dtype)
        qkv = self.qkv(self.embed_half(embeds, of_embeds), hidden, of_hidden, tables)
        return self.after_attention(hidden, attend(*qkv))


class EagleDraft(nn.Module):
    """fc, decoder layers, norm and a head over the draft vocabulary. See `DraftConfig` for the shapes; EAGLE-3.1
    norms the features before fc (`fc_norm`) and what a step hands to the next one (`norm_output`).

    `d2t` int64 `[draft_vocab]` holds offsets (`token = i + d2t[i]`), `t2d` bool `[vocab]` marks the tokens it reaches.
    `embed_tokens [V, H]` is the target's embedding, `target_head [draft_vocab, H_target]` of its head the rows of these
    tokens: frozen and in no checkpoint; `share_target` sets both.
    """

    d2t: torch.Tensor
    t2d: torch.Tensor
    embed_tokens: torch.Tensor | None
    target_head: torch.Tensor | None

    def __init__(self, config: DraftConfig):
        super().__init__()
        self.config = config
        self.fc_norm = (
            nn.ModuleList(nn.RMSNorm(config.target_hidden_size, config.rms_norm_eps) for _ in config.feature_layers)
            if config.fc_norm
            else None
        )
        self.fc = nn.Linear(3 * config.target_hidden_size, config.hidden_size, bias=False)
        self.midlayer = Midlayer(config)
        self.layers = nn.ModuleDict({str(at): Layer(config) for at in range(1, config.num_hidden_layers)})
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
        self.register_buffer("t2d", torch.arange(config.vocab_size) < config.draft_vocab_size)
        self.register_buffer("embed_tokens", None, persistent=False)
        self.register_buffer("target_head", None, persistent=False)

    def share_target(self, embed: torch.Tensor, head: torch.Tensor) -> None:
        """Uses the target's embedding `[V, H]` as it is, no copy, and of its head `[V, H_target]` the rows of the
        draft's vocabulary, which is set before (a copy, unless it is the whole one). `BadInput` if the embedding is not
        as wide as the draft.
        """
        if embed.shape[1] != self.config.hidden_size:
            raise BadInput(
                f"the draft's width {self.config.hidden_size} must be the target's {embed.shape[1]}: "
                "it reads the target's embedding"
            )
        self.embed_tokens = embed.detach()
        self.target_head = head.detach() if self.config.whole_vocabulary else head.detach()[self.draft_tokens()]

    def set_vocabulary(self, d2t: torch.Tensor, t2d: torch.Tensor) -> None:
        """Copies a vocabulary map in; `BadInput` if `d2t` and `t2d` do not describe the same tokens in order."""
        if d2t.shape != self.d2t.shape or t2d.shape != self.t2d.shape:
            raise BadInput(
                f"the vocabulary map has {len(d2t)} of {len(t2d)} tokens, "
                f"the draft's config says {len(self.d2t)} of {len(self.t2d)}"
            )
        if not torch.equal(d2t + torch.arange(len(d2t), device=d2t.device), t2d.nonzero().squeeze(1)):
            raise BadInput("the vocabulary map's d2t is not the ascending offsets of the tokens that its t2d marks")
        self.d2t.copy_(d2t)
        self.t2d.copy_(t2d)
        self.target_head = None  # it was another vocabulary's

    def draft_tokens(self) -> torch.Tensor:
        """`[draft_vocab]` int64: the target's id of each draft token, ascending."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """`ids [..]` -> `[.., H]` in the draft's dtype."""
        if self.embed_tokens is None:
            raise RuntimeError("share_target() comes before the first step")
        return F.embedding(ids, self.embed_tokens).to(self.fc.weight.dtype)

    def project_features(self, aux: torch.Tensor) -> torch.Tensor:
        """`aux [.., 3 * H_target]` -> `[.., H]`, un-normed: the first hidden."""
        aux = aux.to(self.fc.weight.dtype)
        if self.fc_norm is not None:
            features = aux.chunk(len(self.fc_norm), -1)
            aux = torch.cat([norm(its) for norm, its in zip(self.fc_norm, features, strict=True)], -1)
        return self.fc(aux)

    def carry(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the next step reads of this one's `hidden [.., H]`: itself, or normed."""
        return self.norm(hidden) if self.config.norm_output else hidden

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden [.., H]` pre-norm -> logits `[.., draft_vocab]`."""
        return self.lm_head(self.norm(hidden))

    def forward(self, body: Callable[..., Any], *args: Any) -> Any:
        """Runs `body(draft, *args)`. FSDP2 gathers the parameters around `forward`, so a step runs inside it."""
        return body(self, *args)

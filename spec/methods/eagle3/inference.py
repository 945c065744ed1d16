"""A draft as the server runs it: its exported folder, one token after another, with a cache of keys and values.

Written from the definition of EAGLE-3 (arXiv 2503.01840, section 3.1; SGLang's models/llama_eagle3.py) and sharing no
code with training, so that a mistake in either shows where the two are compared. Chains only, no trees, one sequence.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, rotate_half

from spec.methods.eagle3 import probe
from spec.methods.files import WEIGHTS


class Cache(NamedTuple):
    """Keys and values of the positions read so far, an entry a layer: `[kv_heads, length, head_dim]` each.

    Never changed in place: a chain that runs ahead leaves no trace.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def length(self) -> int:
        return self.keys[0].shape[1]


class InferenceDraft:
    def __init__(self, config: LlamaConfig, weights: dict[str, torch.Tensor]):
        """`weights` by their exported names, all of one dtype; `config` as transformers reads the exported one."""
        self.config, self.weights = config, weights
        self.head_dim = int(config.head_dim or 0)
        self.kv_heads = len(weights["midlayer.self_attn.k_proj.weight"]) // self.head_dim
        self.dtype, self.device = weights["fc.weight"].dtype, weights["fc.weight"].device
        self.rotary = LlamaRotaryEmbedding(config).to(self.device)
        d2t = weights["d2t"]
        self.to_target = torch.arange(len(d2t), device=d2t.device) + d2t  # [draft_vocab] target ids
        self.names = ("midlayer", *(f"layers.{at}" for at in range(1, config.num_hidden_layers)))
        self.layers = tuple(config.eagle_config["eagle_aux_hidden_state_layer_ids"])

    @classmethod
    def load(
        cls, folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> "InferenceDraft":
        """An exported draft, its weights cast to `dtype` whatever they are stored in."""
        weights = load_file(folder / WEIGHTS, device=str(device))
        weights = {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}
        return cls(LlamaConfig.from_pretrained(folder), weights)

    def untrained(self, seed: int = 0) -> "InferenceDraft":
        """A draft of the same shape and vocabulary that has learnt nothing: what chance accepts."""
        random = torch.Generator().manual_seed(seed)
        weights = dict(self.weights)
        for name, weight in self.weights.items():
            if "norm" in name:
                weights[name] = torch.ones_like(weight)
            elif weight.is_floating_point():
                weights[name] = (torch.randn(weight.shape, generator=random) * 0.02).to(weight)
        return InferenceDraft(self.config, weights)

    def empty_cache(self) -> Cache:
        empty = torch.empty(self.kv_heads, 0, self.head_dim, dtype=self.dtype, device=self.device)
        nothing = (empty,) * len(self.names)
        return Cache(nothing, nothing)

    def project(self, aux: torch.Tensor) -> torch.Tensor:
        """The target's three hidden states [T, 3*H_target] as one feature [T, H]; each normed with `fc_norm`."""
        aux = aux.to(self.dtype)
        if getattr(self.config, "fc_norm", False):
            features = aux.chunk(len(self.layers), -1)
            aux = torch.cat([self._norm(its, f"fc_norm.{at}") for at, its in enumerate(features)], -1)
        return self._linear(aux, "fc")

    def carry(self, hidden: torch.Tensor) -> torch.Tensor:
        """What is read of the state that `read` returned, when the draft is read in turn; normed with `norm_output`."""
        return self._norm(hidden, "norm") if getattr(self.config, "norm_output", False) else hidden

    @torch.no_grad()
    def read(self, embeddings: torch.Tensor, hidden: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """Read tokens at the positions after those of `cache`, each beside the state of the position before it.

        `embeddings [T, H]` of the tokens; `hidden [T, H]`: features (from `project`), or this function's own output for
        a draft that is read in turn. Returns the states before the last norm [T, H], and the longer cache.
        """
        x = torch.cat(
            [
                self._norm(embeddings.to(self.dtype), "midlayer.input_layernorm"),
                self._norm(hidden, "midlayer.hidden_norm"),
            ],
            dim=-1,
        )  # [T, 2H]
        keys, values = [], []
        for index, name in enumerate(self.names):
            if index:
                x = self._norm(hidden, f"{name}.hidden_norm")
            attended, key, value = self._attend(x, name, cache.keys[index], cache.values[index])
            keys.append(key)
            values.append(value)
            hidden = hidden + attended
            x = self._norm(hidden, f"{name}.post_attention_layernorm")
            gated = F.silu(self._linear(x, f"{name}.mlp.gate_proj")) * self._linear(x, f"{name}.mlp.up_proj")
            hidden = hidden + self._linear(gated, f"{name}.mlp.down_proj")
        return hidden, Cache(tuple(keys), tuple(values))

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Over the draft's vocabulary, [.., draft_vocab], from the states that `read` returns."""
        return self._linear(self._norm(hidden, "norm"), "lm_head")

    @torch.no_grad()
    def propose(
        self, tokens: torch.Tensor, aux: torch.Tensor, cache: Cache, target: Any, drafts: int
    ) -> tuple[list[int], Cache]:
        """`drafts` target ids in a greedy chain after `tokens [T]`, whose positions before have features `aux [T, 3H]`.

        Returns the drafts, and the cache with only the T positions of real features: the chain's own are guesses.
        `target.embed [vocab, H]` is the target's.
        """
        embed = target.embed
        hidden, known = self.read(embed[tokens], self.project(aux), cache)
        guessed, ahead, hidden = [], known, hidden[-1:]
        for _ in range(drafts):
            guessed.append(self.to_target[self.logits(hidden)[0].argmax()])
            if len(guessed) < drafts:
                hidden, ahead = self.read(embed[guessed[-1]][None], self.carry(hidden), ahead)
        return [int(token) for token in guessed], known

    def draw(
        self, tokens: torch.Tensor, aux: torch.Tensor, cache: Cache, target: Any, drafts: int, **sampling: Any
    ) -> tuple[list[int], None, Cache]:
        """A chain is greedy at any temperature (SGLang's eagle_worker_v2.py, unless it serves with
        --speculative-use-rejection-sampling)."""
        guessed, known = self.propose(tokens, aux, cache, target, drafts)
        return guessed, None, known

    def probe_answer(self) -> torch.Tensor:
        """The logits [FEATURES + CHAIN, draft_vocab] on the probe, in fp32."""
        embeddings, aux = probe.inputs(self.config.hidden_size, self.config.target_hidden_size)
        hidden, cache = self.read(embeddings[: probe.FEATURES], self.project(aux), self.empty_cache())
        states = [hidden]
        for embedding in embeddings[probe.FEATURES :]:
            hidden, cache = self.read(embedding[None], self.carry(hidden[-1:]), cache)
            states.append(hidden)
        return self.logits(torch.cat(states))

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.weights[name + ".weight"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """RMSNorm, the mean square in fp32 as the server takes it."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return scaled.to(x.dtype) * self.weights[name + ".weight"]

    def _attend(
        self, x: torch.Tensor, name: str, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Causal attention of T new positions [T, 2H or H] over a layer's cached ones and each other: [T, H], and the
        longer keys and values.
        """
        count, before = len(x), keys.shape[1]
        q, k, v = (
            self._linear(x, f"{name}.self_attn.{part}_proj").unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
            for part in "qkv"
        )  # [heads, T, head_dim]
        positions = torch.arange(before, before + count, device=self.device)
        cos, sin = self.rotary(x, positions[None])  # [1, T, head_dim]
        q, k = (y * cos + rotate_half(y) * sin for y in (q, k))
        keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        seen = torch.arange(before + count, device=self.device) <= positions[:, None]  # [T, length]
        mixed = F.scaled_dot_product_attention(q[None], keys[None], values[None], attn_mask=seen, enable_gqa=True)[
            0
        ]  # [heads, T, head_dim]
        return self._linear(mixed.transpose(0, 1).flatten(1), f"{name}.self_attn.o_proj"), keys, values

"""A block draft as the server runs it: its exported folder, a block a round, and a cache of the context's keys.

Written from the definition (arXiv 2602.06036 and 2607.05147; SGLang's models/dflash.py and models/dspark.py) and
sharing no code with training, so that a mistake in either shows where the two are compared. One sequence.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding, rotate_half

from spec.methods.block import probe
from spec.methods.files import WEIGHTS


class Cache(NamedTuple):
    """Rotated keys and values of the context, an entry a layer: `[kv_heads, length, head_dim]` each."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def length(self) -> int:
        return self.keys[0].shape[1]


class BlockDrafter:
    def __init__(self, config: Qwen3Config, weights: dict[str, torch.Tensor]):
        """`weights` by their exported names, all of one dtype; `config` as transformers reads the exported one."""
        self.config, self.weights = config, weights
        self.head_dim, self.kv_heads = int(config.head_dim), int(config.num_key_value_heads or 0)
        self.dtype, self.device = weights["fc.weight"].dtype, weights["fc.weight"].device
        self.rotary = Qwen3RotaryEmbedding(config).to(self.device)
        self.mask = config.dflash_config["mask_token_id"]
        self.layers = tuple(config.dflash_config["target_layer_ids"])
        self.markov = "markov_head.markov_w1.weight" in weights

    @classmethod
    def load(
        cls, folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> "BlockDrafter":
        """An exported draft, its weights cast to `dtype` whatever they are stored in."""
        weights = load_file(folder / WEIGHTS, device=str(device))
        return cls(Qwen3Config.from_pretrained(folder), {name: w.to(dtype) for name, w in weights.items()})

    def untrained(self, seed: int = 0) -> "BlockDrafter":
        """A draft of the same shape that has learnt nothing: what chance accepts."""
        random = torch.Generator().manual_seed(seed)
        weights = {
            name: torch.ones_like(weight)
            if name.endswith("norm.weight")
            else (torch.randn(weight.shape, generator=random) * 0.02).to(weight)
            for name, weight in self.weights.items()
        }
        return BlockDrafter(self.config, weights)

    def empty_cache(self) -> Cache:
        empty = torch.empty(self.kv_heads, 0, self.head_dim, dtype=self.dtype, device=self.device)
        nothing = (empty,) * self.config.num_hidden_layers
        return Cache(nothing, nothing)

    @torch.no_grad()
    def propose(
        self, tokens: torch.Tensor, aux: torch.Tensor, cache: Cache, target: Any, drafts: int
    ) -> tuple[list[int], Cache]:
        """`drafts` target ids after `tokens [T]`, whose positions before have the features `aux [T, K * H]`.

        The last of `tokens` is the anchor; the ones before it are known to the draft by their features alone. Returns
        the drafts and the cache with the T positions. `target` has the frozen `embed` and `head`, both `[V, H]`.
        """
        logits, cache = self._logits(tokens, aux, cache, target, drafts)
        if not self.markov:
            return logits.argmax(-1).tolist(), cache
        guessed = [int(tokens[-1])]
        for row in logits:
            guessed.append(int((row + self.bias(guessed[-1:])[0]).argmax()))
        return guessed[1:], cache

    @torch.no_grad()
    def draw(
        self,
        tokens: torch.Tensor,
        aux: torch.Tensor,
        cache: Cache,
        target: Any,
        drafts: int,
        *,
        temperature: float,
        generator: torch.Generator,
    ) -> tuple[list[int], torch.Tensor | None, Cache]:
        """DSpark draws each draft at the answer's temperature (SGLang's dspark_draft.py); DFlash's are its first
        choices (dflash_worker_v2.py)."""
        if not self.markov:
            guessed, cache = self.propose(tokens, aux, cache, target, drafts)
            return guessed, None, cache
        logits, cache = self._logits(tokens, aux, cache, target, drafts)
        guessed, drawn_from = [int(tokens[-1])], []
        for row in logits:
            drawn_from.append(((row + self.bias(guessed[-1:])[0]).float() / temperature).softmax(-1))
            guessed.append(int(torch.multinomial(drawn_from[-1], 1, generator=generator)))
        return guessed[1:], torch.stack(drawn_from), cache

    def _logits(
        self, tokens: torch.Tensor, aux: torch.Tensor, cache: Cache, target: Any, drafts: int
    ) -> tuple[torch.Tensor, Cache]:
        """`[drafts, V]`, without a Markov head's bias, and the cache with the positions of `aux` read."""
        cache = self.read(aux, cache)
        ids = torch.full((drafts if self.markov else drafts + 1,), self.mask, device=self.device)
        ids[0] = tokens[-1]
        logits = self.states(target.embed[ids].to(self.dtype), cache) @ target.head.to(self.dtype).T  # [rows, V]
        return logits if self.markov else logits[1:], cache

    def read(self, aux: torch.Tensor, cache: Cache) -> Cache:
        """The cache with the next positions' features `aux [T, K * H]` read."""
        context = self._norm(self._linear(aux.to(self.dtype), "fc"), "hidden_norm")  # [T, H]
        turned = self._turns(torch.arange(cache.length, cache.length + len(aux), device=self.device))
        keys, values = [], []
        for layer in range(self.config.num_hidden_layers):
            key, value = self._key_value(context, f"layers.{layer}.self_attn", turned)
            keys.append(torch.cat((cache.keys[layer], key), 1))
            values.append(torch.cat((cache.values[layer], value), 1))
        return Cache(tuple(keys), tuple(values))

    def states(self, hidden: torch.Tensor, cache: Cache) -> torch.Tensor:
        """A block `hidden [rows, H]` right after the cache's positions -> its states after the last norm."""
        turned = self._turns(torch.arange(cache.length, cache.length + len(hidden), device=self.device))
        for layer in range(self.config.num_hidden_layers):
            at = f"layers.{layer}"
            x = self._norm(hidden, f"{at}.input_layernorm")
            query = self._turned(self._heads(x, f"{at}.self_attn.q_proj"), f"{at}.self_attn.q_norm", turned)
            key, value = self._key_value(x, f"{at}.self_attn", turned)
            keys, values = torch.cat((cache.keys[layer], key), 1), torch.cat((cache.values[layer], value), 1)
            mixed = F.scaled_dot_product_attention(query[None], keys[None], values[None], enable_gqa=True)[0]
            hidden = hidden + self._linear(mixed.transpose(0, 1).flatten(1), f"{at}.self_attn.o_proj")
            x = self._norm(hidden, f"{at}.post_attention_layernorm")
            gated = F.silu(self._linear(x, f"{at}.mlp.gate_proj")) * self._linear(x, f"{at}.mlp.up_proj")
            hidden = hidden + self._linear(gated, f"{at}.mlp.down_proj")
        return self._norm(hidden, "norm")

    def bias(self, previous: list[int] | torch.Tensor) -> torch.Tensor:
        """The Markov head's bias `[.., V]` of what follows `previous [..]`."""
        return self.weights["markov_head.markov_w1.weight"][previous] @ self.weights["markov_head.markov_w2.weight"].T

    @torch.no_grad()
    def probe_answer(self) -> torch.Tensor:
        """`[rows, TOKENS]`, DSpark's with `[TOKENS, TOKENS]` below it: see `spec.methods.block.probe`."""
        asked = probe.question(self.config.hidden_size, len(self.layers), self.config.vocab_size)
        cache = self.read(asked.aux, self.empty_cache())
        block = asked.embeddings[[0] + [1] * (self.config.block_size - 1)]
        answer = self.states(block, cache) @ asked.directions.T
        return torch.cat((answer, self.bias(asked.tokens)[:, asked.tokens])) if self.markov else answer

    def _key_value(self, x: torch.Tensor, name: str, turned) -> tuple[torch.Tensor, torch.Tensor]:
        key = self._turned(self._heads(x, f"{name}.k_proj"), f"{name}.k_norm", turned)
        return key, self._heads(x, f"{name}.v_proj")

    def _heads(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self._linear(x, name).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)  # [heads, T, head_dim]

    def _turned(self, x: torch.Tensor, norm: str, turned) -> torch.Tensor:
        x, (cos, sin) = self._norm(x, norm), turned
        return x * cos + rotate_half(x) * sin

    def _turns(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self.rotary(self.weights["norm.weight"], positions[None])  # [1, T, head_dim]
        return cos, sin

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.weights[name + ".weight"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """RMSNorm, the mean square in fp32 as the server takes it."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return scaled.to(x.dtype) * self.weights[name + ".weight"]

"""The frozen target: the hidden states that the draft reads, and the last one, which gives its distribution."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from spec.attention.documents import Documents
from spec.ranks import together
from spec.target.families import FAMILIES, Family, family_of, read_config, text_config_of
from spec.target.loading import empty_model, fill
from spec.target.sharding import Shard, shard_layers, target_mesh

__all__ = ["FAMILIES", "Features", "FrozenTarget", "family_of", "read_config", "text_config_of"]


class Features(NamedTuple):
    aux: torch.Tensor  # [B, T, F * H] outputs of the F layers that were asked for, ascending, before any norm
    last: torch.Tensor  # [B, T, H] after the final norm: `last @ head_weight.T` are the target's logits


class FrozenTarget(nn.Module):
    """A target's text model, without autograd, in any of the families of `spec.target.families`."""

    def __init__(self, model: PreTrainedModel):
        """`model`: what `spec.target.loading` makes of a family's config."""
        super().__init__()
        self.text_config: PretrainedConfig = model.config
        self.hidden_size: int = self.text_config.hidden_size
        self.vocab_size: int = self.text_config.vocab_size
        self.model = model

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        shard: Shard = "none",
    ) -> "FrozenTarget":
        """Read a target's directory (config.json, safetensors) to `device`, split over ranks as `shard` says.

        Every rank calls it. Host memory: the rank's own part plus a layer in passing. `BadInput`, on every rank alike,
        names the file that is missing, cut short, damaged or of another model.
        """

        def empty() -> tuple[FrozenTarget, Family]:
            config = read_config(path)
            return cls(empty_model(config, family_of(config), dtype)), family_of(config)

        target, family = together(empty)
        mesh = together(lambda: target_mesh(shard, torch.device(device).type))  # once all are well: it needs every rank
        if mesh is not None:
            shard_layers(target, target.model.model.layers, mesh)
        together(lambda: fill(target.model, Path(path), family, torch.device(device)))
        return target

    @property
    def embed_weight(self) -> torch.Tensor:
        return self.model.model.embed_tokens.weight  # [V, H]

    @property
    def head_weight(self) -> torch.Tensor:
        return self.model.lm_head.weight  # [V, H]

    @torch.no_grad()
    def features(self, input_ids: torch.Tensor, documents: Documents, layers: Sequence[int]) -> Features:
        """The features of `input_ids [B, T]`, packed as `documents` says. Padding gets finite junk.

        `layers`: those whose outputs are asked for, 0-based, ascending, the last one not among them.
        """
        return self(input_ids, documents, layers)

    def forward(self, input_ids: torch.Tensor, documents: Documents, layers: Sequence[int]) -> Features:
        decoder, config = self.model.model, self.text_config
        seen = {"full_attention": documents}
        if chunk := getattr(config, "attention_chunk_size", None):
            seen["chunked_attention"] = documents.chunked(chunk)
        layer_types = getattr(config, "layer_types", None) or ["full_attention"] * len(decoder.layers)
        hidden = decoder.embed_tokens(input_ids)  # [B, T, H]
        rotary = decoder.rotary_emb(hidden, documents.position_ids)
        aux = hidden.new_empty(*hidden.shape[:2], len(layers) * self.hidden_size)
        for index, layer in enumerate(decoder.layers):
            if index - 1 in layers:
                at = layers.index(index - 1) * self.hidden_size
                aux[..., at : at + self.hidden_size] = hidden
            hidden = layer(
                hidden,
                attention_mask=None,
                position_ids=documents.position_ids,
                position_embeddings=rotary,
                use_cache=False,
                documents=seen[layer_types[index]],
            )
        return Features(aux, decoder.norm(hidden))

"""The frozen target: the three hidden states that the draft reads, and the final one that its distribution comes from."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from spec.models import document_attention
from spec.models.families import FAMILIES, family_of, feature_layers, model_class, read_config, text_config_of

__all__ = ["FAMILIES", "Features", "FrozenTarget", "family_of", "feature_layers", "read_config", "text_config_of"]


class Features(NamedTuple):
    aux: torch.Tensor  # [B, T, 3H] outputs of the three feature layers, ascending, before any norm
    last: torch.Tensor  # [B, T, H] after the final norm: `last @ head_weight.T` are the target's logits


class FrozenTarget(nn.Module):
    """A target's text model, without autograd, in any of the families of `spec.models.families`."""

    def __init__(self, model: PreTrainedModel):
        """`model`: transformers' causal language model of a family, with its weights."""
        super().__init__()
        self.text_config: PretrainedConfig = model.config
        self.feature_layers = feature_layers(self.text_config.num_hidden_layers)
        self.hidden_size: int = self.text_config.hidden_size
        self.vocab_size: int = self.text_config.vocab_size
        model.set_attn_implementation(document_attention.NAME)
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        shard: Literal["none", "node", "world"] = "none",
    ) -> "FrozenTarget":
        config = read_config(path)
        model = model_class(family_of(config)).from_pretrained(path, config=text_config_of(config), dtype=dtype)
        return cls(model.to(device))

    @property
    def embed_weight(self) -> torch.Tensor:
        return self.model.model.embed_tokens.weight  # [V, H]

    @property
    def head_weight(self) -> torch.Tensor:
        return self.model.lm_head.weight  # [V, H]

    @torch.no_grad()
    def features(self, input_ids: torch.Tensor, documents) -> Features:
        """The features of `input_ids [B, T]`, packed as `documents` says. What stands on padding is undefined, finite."""
        return self(input_ids, documents)

    def forward(self, input_ids: torch.Tensor, documents) -> Features:
        decoder = self.model.model
        hidden = decoder.embed_tokens(input_ids)  # [B, T, H]
        rotary = decoder.rotary_emb(hidden, documents.position_ids)
        aux = hidden.new_empty(*hidden.shape[:2], 3 * self.hidden_size)
        for index, layer in enumerate(decoder.layers):
            if index - 1 in self.feature_layers:
                at = self.feature_layers.index(index - 1) * self.hidden_size
                aux[..., at : at + self.hidden_size] = hidden
            hidden = layer(
                hidden,
                attention_mask=None,
                position_ids=documents.position_ids,
                position_embeddings=rotary,
                use_cache=False,
                documents=documents,
                spans=documents.spans,
            )
        return Features(aux, decoder.norm(hidden))

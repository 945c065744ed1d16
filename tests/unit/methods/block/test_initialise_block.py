"""A block draft that begins as the target's last layers."""

import pytest
import torch
from torch.nn import functional as F

from spec.attention.documents import Documents
from spec.errors import BadInput
from spec.methods.block import initialise
from spec.methods.block.config import BlockDraftConfig
from spec.methods.block.draft import BlockDraft
from spec.target.frozen import FrozenTarget
from tests.tiny_models import save_tiny_target

LAYERS = 2


def begun(target, **overrides):
    asked = {"layers": LAYERS, "block_size": 4, "features": 3, "mask_token_id": 319, "markov_rank": 8} | overrides
    draft = BlockDraft(BlockDraftConfig.for_target(target.text_config, **asked))
    initialise.from_target(draft, target)
    return draft


def causal(query, key, value, *context):
    """Its own rows alone, each seeing those before it, as the target's layer does."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)


def test_its_layers_and_norm_compute_what_the_targets_last_ones_do(tmp_path):
    """Qwen3's: it norms its heads, so nothing is left to be guessed."""
    target = FrozenTarget.load(save_tiny_target("qwen3", tmp_path), dtype=torch.float32)
    decoder = target.model.model
    with torch.no_grad():  # norms of ones would hide which is which
        for name, weight in decoder.named_parameters():
            if "norm" in name:
                weight += 0.3 * torch.randn_like(weight)
    draft = begun(target)
    documents, hidden = Documents.from_lengths([[9]], 9), torch.randn(1, 9, target.hidden_size)
    tables = draft.rope.tables(documents.position_ids, hidden.dtype)
    wanted = ours = hidden
    with torch.no_grad():
        for layer, its in zip(draft.layers, decoder.layers[-LAYERS:], strict=True):
            wanted = its(
                wanted,
                attention_mask=None,
                position_ids=documents.position_ids,
                position_embeddings=decoder.rotary_emb(hidden, documents.position_ids),
                use_cache=False,
                documents=documents,
            )
            ours = layer(ours, hidden[0], tables, tables, causal)
        torch.testing.assert_close(draft.norm(ours), decoder.norm(wanted))
        aux = torch.cat((torch.randn(9, 2 * target.hidden_size), hidden[0]), -1)
        torch.testing.assert_close(draft.context(aux), decoder.layers[-LAYERS].input_layernorm(hidden[0]))


def test_where_the_target_does_not_norm_its_heads_they_keep_their_size(tmp_path):
    target = FrozenTarget.load(save_tiny_target("llama", tmp_path), dtype=torch.float32)
    draft = begun(target)
    x = F.rms_norm(torch.randn(4096, target.hidden_size), (target.hidden_size,))
    for ours, its in zip(draft.layers, target.model.model.layers[-LAYERS:], strict=True):
        for name in "qk":
            weight = getattr(its.self_attn, f"{name}_proj").weight
            assert torch.equal(getattr(ours.self_attn, f"{name}_proj").weight, weight)
            heads = F.linear(x * its.input_layernorm.weight, weight).unflatten(-1, (-1, draft.config.head_dim))
            wanted = heads.square().mean((0, 1)).sqrt()  # [D]
            torch.testing.assert_close(getattr(ours.self_attn, f"{name}_norm").weight, wanted, rtol=0.1, atol=0)
        assert torch.equal(ours.mlp.down_proj.weight, its.mlp.down_proj.weight)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        *(("qwen3_moe", {}), ("llama", {"num_key_value_heads": 4}), ("qwen3", {"head_dim": 32})),
        *(("qwen3", {"intermediate_size": 64}), ("llama", {"layers": 9})),
    ],
)
def test_layers_of_another_kind_or_shape_are_refused(tmp_path, family, overrides):
    target = FrozenTarget.load(save_tiny_target(family, tmp_path), dtype=torch.float32)
    with pytest.raises(BadInput, match="initialise=random"):
        begun(target, **overrides)

import pytest
import torch
from torch.nn import functional as F

from spec.attention.documents import Documents
from spec.errors import BadInput
from spec.methods.eagle3 import initialise
from spec.methods.eagle3.config import DraftConfig
from spec.methods.eagle3.draft import EagleDraft
from spec.target.frozen import FrozenTarget
from tests.tiny_models import save_tiny_target


def draft_of(target, **overrides):
    draft = EagleDraft(DraftConfig.for_target(target.text_config, 32, **overrides))
    draft.share_target(target.embed_weight, target.head_weight)
    return draft


@pytest.mark.parametrize("count", [1, 2])
def test_the_draft_begins_as_the_targets_last_layers_norm_and_head(tmp_path, count):
    target = FrozenTarget.load(save_tiny_target("llama", tmp_path), dtype=torch.float32)
    draft = draft_of(target, num_hidden_layers=count)
    initialise.from_target(draft, target)

    ids = torch.randint(0, target.vocab_size, (1, 9))
    documents = Documents.from_lengths([[9]], 9)
    hidden = torch.randn(1, 9, target.hidden_size)
    decoder = target.model.model
    with torch.no_grad():
        wanted = hidden
        for layer in decoder.layers[-count:]:
            wanted = layer(
                wanted,
                attention_mask=None,
                position_ids=documents.position_ids,
                position_embeddings=decoder.rotary_emb(hidden, documents.position_ids),
                use_cache=False,
                documents=documents,
            )
        wanted = decoder.norm(wanted) @ target.head_weight[draft.draft_tokens()].T

        def attend(query, key, value):
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)

        aux = torch.cat((torch.randn(1, 9, 2 * target.hidden_size), hidden), -1)
        out = draft.midlayer(draft.embed(ids), draft.project_features(aux), documents.position_ids, attend)
        for later in draft.layers.values():
            out = later(out, documents.position_ids, attend)
        torch.testing.assert_close(draft.head(out), wanted)


@pytest.mark.parametrize(
    ("family", "overrides"), [("qwen3", {}), ("llama", {"num_key_value_heads": 4}), ("llama", {"num_hidden_layers": 9})]
)
def test_a_layer_of_another_kind_is_refused(tmp_path, family, overrides):
    target = FrozenTarget.load(save_tiny_target(family, tmp_path), dtype=torch.float32)
    with pytest.raises(BadInput, match="initialise=random"):
        initialise.from_target(draft_of(target, **overrides), target)

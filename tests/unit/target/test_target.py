"""The frozen target against transformers' own forward: the right layers, documents that do not see each other."""

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from spec.attention.documents import Documents
from spec.errors import BadInput
from spec.target.families import read_config
from spec.target.frozen import FrozenTarget
from tests.tiny_models import FAMILIES, VOCAB_SIZE, save_tiny_target, tiny_target

LONG = {"attention_chunk_size": 12, "floor_scale": 8}  # Llama 4 at lengths where chunks and temperature matter


def assert_close(actual, wanted):
    """Equal but for rounding, relative to the largest value: an off-by-one or a wrong mask is off by 0.1 and more."""
    assert actual.shape == wanted.shape
    assert (actual - wanted).abs().max() <= 1e-5 * wanted.abs().max()


LAYERS = (1, 3, 4)


def load(tmp_path, family, **overrides):
    path = save_tiny_target(family, tmp_path / family, **overrides)
    return FrozenTarget.load(path, dtype=torch.float32)


@torch.no_grad()
def expected(model, ids):
    """aux [1, T, 3H], logits [1, T, V] of one document, from transformers' own outputs."""
    out = model.eval()(input_ids=ids, output_hidden_states=True, use_cache=False)
    layers = len(out.hidden_states) - 1
    return torch.cat([out.hidden_states[i] for i in (2, layers // 2, layers - 3)], -1), out.logits


def long(family):
    return LONG if family.startswith("llama4") else {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [7, 33])
def test_features_are_transformers_own_hidden_states(tmp_path, family, length):
    target = load(tmp_path, family, **long(family))
    ids = torch.randint(VOCAB_SIZE, (1, length))
    aux, logits = expected(tiny_target(family, **long(family)), ids)
    features = target.features(ids, Documents.from_lengths([[length]], length), LAYERS)
    assert_close(features.aux, aux)
    assert_close(features.last @ target.head_weight.T, logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_do_not_see_each_other(tmp_path, family):
    target = load(tmp_path, family, **long(family))
    model = tiny_target(family, **long(family))
    lengths = [[5, 14, 9], [1, 26]]
    documents = Documents.from_lengths(lengths, 30)
    ids = torch.randint(VOCAB_SIZE, (2, 30))
    features = target.features(ids, documents, LAYERS)
    for row, start, end in documents.spans:
        aux, logits = expected(model, ids[row : row + 1, start:end])
        assert_close(features.aux[row, start:end], aux[0])
        assert_close(features.last[row, start:end] @ target.head_weight.T, logits[0])
    assert features.aux.isfinite().all()  # on padding too


def test_llama_3_rope_scaling_is_kept(tmp_path):
    scaling = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    config = AutoConfig.from_pretrained(save_tiny_target("llama", tmp_path / "plain"))
    config.rope_parameters = scaling
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "scaled")
    ids = torch.randint(VOCAB_SIZE, (1, 40))
    features = FrozenTarget.load(tmp_path / "scaled", dtype=torch.float32).features(
        ids, Documents.from_lengths([[40]], 40), LAYERS
    )
    assert_close(features.aux, expected(model, ids)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_no_farther_from_fp32_than_transformers_is(tmp_path, family):
    path = save_tiny_target(family, tmp_path / "t")
    target = FrozenTarget.load(path, dtype=torch.bfloat16)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    ids = torch.randint(VOCAB_SIZE, (1, 20), generator=torch.Generator().manual_seed(1))
    truth, _ = expected(tiny_target(family), ids)
    theirs, _ = expected(plain, ids)
    ours = target.features(ids, Documents.from_lengths([[20]], 20), LAYERS).aux
    assert ours.dtype == torch.bfloat16
    # The mean, since rounding lets a mixture's router choose another expert here and there.
    assert (ours - truth).abs().mean() <= 1.2 * (theirs - truth).abs().mean()


def test_nothing_of_the_target_asks_for_gradients(tmp_path):
    target = load(tmp_path, "llama4")
    features = target.features(torch.zeros(1, 4, dtype=torch.int64), Documents.from_lengths([[4]], 4), LAYERS)
    assert not features.aux.requires_grad and not any(p.requires_grad for p in target.parameters())
    assert not any("vision" in name for name, _ in target.named_parameters())


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().size():
                self.elements = max(self.elements, tensor.untyped_storage().size() // tensor.itemsize)
        return result


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tensor_grows_with_the_square_of_the_length(tmp_path, family):
    target = load(tmp_path, family, num_hidden_layers=7)
    largest = {}
    for length in (512, 2048):
        ids = torch.zeros(1, length, dtype=torch.int64)
        with LargestTensor() as watch:
            target.features(ids, Documents.from_lengths([[length - 100, 60]], length), LAYERS)
        largest[length] = watch.elements
    assert largest[2048] <= 4 * largest[512] and largest[2048] < 2048 * 2048


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "gemma3"}', "type 'gemma3' is not known here; the families are llama, llama4"),
        ("{", "not a model's config"),
        ("[]", "not a model's config"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "cannot read this config"),
    ],
)
def test_a_config_of_no_known_target_is_refused(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match=said):
        read_config(tmp_path)


def test_quantised_and_sliding_targets_are_refused(tmp_path):
    path = save_tiny_target("qwen3", tmp_path / "t")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace("{", '{"quantization_config": {"quant_method": "fp8"},', 1))
    with pytest.raises(BadInput, match="quantised"):
        FrozenTarget.load(path)
    (path / "config.json").write_text(
        config.replace('"use_sliding_window": false', '"use_sliding_window": true, "sliding_window": 8')
    )
    with pytest.raises(BadInput, match="sliding"):
        FrozenTarget.load(path)

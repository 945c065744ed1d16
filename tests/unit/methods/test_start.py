"""A draft that begins with the weights of another: exactly those, and what is not the same draft's is refused."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from spec.attention.documents import Documents
from spec.errors import BadInput
from spec.export.verify import target_facts
from spec.methods import METHODS, method_of_published
from spec.methods.block.anchors import draw
from spec.publishing.adopt import adopt
from spec.samples.dataset import SamplesWriter
from tests.existing_drafts import METHOD, as_others_publish, exported, random_draft, tiny_training
from tests.tiny_models import save_tiny_target

BYTES = "model.safetensors"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_tiny_target("llama", tmp_path_factory.mktemp("target"))


def begun(method, target, there, folder, **more):
    """A fresh draft that has begun from the one in `there`, as a run does; and what it told."""
    training = tiny_training(method, target, **more)
    its = method_of_published(json.loads((there / "config.json").read_text()))
    config = adopt(there, folder, target_facts(its, target))
    training.check_start(config)
    told = training.begin_from(folder)
    torch.manual_seed(0)
    draft = training.build("cpu")
    training.initialise(draft, None)
    return draft, told


SHAPES = {
    "eagle3, whole vocabulary": ("eagle3", {"draft_vocab_size": None}),
    "eagle3, two layers": ("eagle3", {"draft": {"num_hidden_layers": 2}}),
    "eagle3.1": ("eagle3", {"draft": {"fc_norm": True, "norm_output": True}}),
}
DRAFTS = {**{method: (method, {}) for method in METHOD}, **SHAPES}


@pytest.mark.parametrize("name", DRAFTS)
def test_what_begins_from_an_export_is_exported_as_the_same_bytes(name, target, tmp_path):
    method, more = DRAFTS[name]
    there = exported(method, target, tmp_path / "there", **more)
    draft, told = begun(method, target, there, tmp_path / "start", **more)
    again = exported(method, target, tmp_path / "again", draft)
    assert (again / BYTES).read_bytes() == (there / BYTES).read_bytes() and told == ""


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_that_others_published_begins_as_the_same_one(name, target, tmp_path):
    method, more = DRAFTS[name]
    ours = exported(method, target, tmp_path / "ours", **more)
    wanted = (ours / BYTES).read_bytes()
    draft, _ = begun(method, target, as_others_publish(ours), tmp_path / "start", **more)
    assert (exported(method, target, tmp_path / "again", draft) / BYTES).read_bytes() == wanted


@pytest.mark.parametrize("method", METHOD)
def test_a_draft_with_another_rope_is_written_beside_its_checkpoints(method, target):
    rope = {"rope_type": "default", "rope_theta": 5e5}
    config = tiny_training(method, target, draft={"rope_parameters": rope}).config
    assert json.loads(config.to_json())["rope_parameters"] == rope


def test_dspark_begins_from_dflash_with_fresh_heads(target, tmp_path):
    there = exported("dflash", target, tmp_path / "there")
    draft, told = begun("dspark", target, there, tmp_path / "start")
    assert told == "its markov_head and confidence_head begins anew"
    weights = load_file(there / BYTES)
    state = draft.state_dict()
    assert all(torch.equal(state[name].bfloat16(), weight) for name, weight in weights.items())
    torch.manual_seed(0)
    fresh = tiny_training("dspark", target).build("cpu").state_dict()
    heads = state.keys() - weights.keys()
    assert {name.split(".")[0] for name in heads} == {"markov_head", "confidence_head"}
    assert all(torch.equal(state[name], fresh[name]) for name in heads)


def test_a_confidence_head_that_is_not_asked_for_is_left_out_and_told(target, tmp_path):
    there = exported("dspark", target, tmp_path / "there")
    draft, told = begun("dspark", target, there, tmp_path / "start", confidence=0.0)
    assert told == "its confidence_head is left out" and draft.confidence_head is None


def test_another_block_size_changes_no_weight(target, tmp_path):
    there = exported("dflash", target, tmp_path / "there")
    draft, _ = begun("dflash", target, there, tmp_path / "start", block_size=3)
    assert torch.equal(draft.fc.weight.bfloat16(), load_file(there / BYTES)["fc.weight"])


@pytest.mark.parametrize(
    ("method", "more", "told"),
    [
        (
            "eagle3",
            {"draft_vocab_size": 64},
            "draft_vocab_size 128, the one to be trained 64; set draft_vocab_size=128",
        ),
        ("eagle3", {"draft": {"intermediate_size": 64}}, "set draft.intermediate_size=128"),
        ("eagle3", {"draft": {"rms_norm_eps": 1e-5}}, "set draft.rms_norm_eps=1e-06"),
        (
            "eagle3",
            {"draft": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}},
            "set draft.rope_parameters.rope_theta=10000.0 draft.rope_parameters.rope_type=default",
        ),
        ("eagle3", {"draft": {"num_hidden_layers": 2}}, "set draft.num_hidden_layers=1"),
        ("eagle3", {"draft": {"fc_norm": True}}, "fc_norm False, the one to be trained True; set draft.fc_norm=false"),
        ("dflash", {"layers": 2}, "num_hidden_layers 1, the one to be trained 2; set layers=1"),
        ("dflash", {"mask_token_id": 318}, "mask_token_id 319, the one to be trained 318; set mask_token_id=319"),
        ("dflash", {"features": 2}, "features 3, the one to be trained 2; set features=3"),
        ("dspark", {"markov_rank": 4}, "markov_rank 8, the one to be trained 4; set markov_rank=8"),
    ],
)
def test_another_shape_is_refused_with_the_setting_that_would_do(target, tmp_path, method, more, told):
    config = json.loads((exported(method, target, tmp_path / "there") / "config.json").read_text())
    with pytest.raises(BadInput) as refused:
        tiny_training(method, target, **more).check_start(config)
    assert told in str(refused.value)


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "longrope": LONG | {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("method", METHOD)
def test_the_advice_pasted_into_a_command_line_makes_the_draft_fit(target, tmp_path, method, rope):
    """A field at a time, as a user would: each word is one that a shell leaves as it is."""
    shape = {"rope_parameters": ROPES[rope], "rms_norm_eps": 1e-5, "intermediate_size": 64}
    config = json.loads((exported(method, target, tmp_path / "there", draft=shape) / "config.json").read_text())
    words: list[str] = []
    for _ in shape:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(words))
        with pytest.raises(BadInput) as refused:
            tiny_training(method, target, **given).check_start(config)
        words += str(refused.value).partition("; set ")[2].split()
    assert not any(set(word) & set("{}'\"() ") for word in words)
    tiny_training(method, target, **OmegaConf.to_container(OmegaConf.from_dotlist(words))).check_start(config)


@pytest.mark.parametrize(("method", "rows"), [("dflash", 5), ("dspark", 4)])
def test_a_block_as_long_as_the_longest_answer_allows_is_advised(target, tmp_path, method, rows):
    """Of an answer's five tokens the first is the anchor, which is a row of DFlash's block that drafts none."""
    for split in ("train", "held_out"):
        with SamplesWriter(tmp_path / split) as writer:
            mask = np.array([0] * 3 + [1] * 5, np.uint8)
            writer.append(np.arange(8, dtype=np.int32), mask, np.array([8]), np.array([1], np.uint64))
    with pytest.raises(BadInput, match=f"has 5 tokens; set block_size to {rows} at most"):
        tiny_training(method, target, block_size=rows + 1).read_samples(tmp_path, "URL")
    training = tiny_training(method, target, block_size=rows)
    assert training.read_samples(tmp_path, "URL") == ""
    documents, mask = Documents.from_lengths([[8]], 8), torch.tensor(mask, dtype=torch.bool)[None]
    drawn = draw(documents, mask, [0], drafts=training.positions, most=8, seed=0, epoch=0)
    assert drawn.count.min() == 1  # its last draft is learnt, once


@pytest.mark.parametrize("method", ["dflash", "dspark"])
def test_answers_of_a_single_token_are_for_no_block(target, tmp_path, method):
    for split in ("train", "held_out"):
        with SamplesWriter(tmp_path / split) as writer:
            writer.append(
                np.arange(2, dtype=np.int32), np.array([0, 1], np.uint8), np.array([2]), np.array([1], np.uint64)
            )
    with pytest.raises(BadInput, match="has 1 tokens; no block can be learnt from them"):
        tiny_training(method, target, block_size=2).read_samples(tmp_path, "URL")


@pytest.mark.parametrize("method", METHOD)
def test_a_wider_or_a_deeper_targets_draft_is_refused(target, tmp_path, method):
    config = json.loads((exported(method, target, tmp_path / "there") / "config.json").read_text())
    other = {"num_hidden_layers": 12}, {"hidden_size": 128}, {"vocab_size": 400}
    for at, shape in enumerate(other):
        path = save_tiny_target("llama", tmp_path / str(at), **shape)
        with pytest.raises(BadInput, match="no setting changes it"):
            tiny_training(method, path).check_start(config)


@pytest.mark.parametrize(
    ("method", "config", "told"),
    [
        ("dspark", {"sample_from_anchor": False}, "sample_from_anchor is False: a layout with one row more"),
        ("dspark", {"markov_head_type": "gated"}, "markov_head_type is 'gated'"),
        ("dspark", {"dspark_block_size": 7}, "dspark_block_size is set"),
        ("dflash", {"quantization_config": {"bits": 4}}, "quantization_config is set"),
        ("eagle3", {"norm_before_fc": True}, "norm_before_fc is set"),
        ("eagle3", {"architectures": ["Eagle3Speculator"]}, "architectures is"),
        ("eagle3", {"draft_vocab_size": None}, "draft_vocab_size is None"),
    ],
)
def test_a_published_draft_of_a_kind_that_is_not_known_is_refused(target, tmp_path, method, config, told):
    there = as_others_publish(exported(method, target, tmp_path / "there"), **config)
    with pytest.raises(BadInput) as refused:
        adopt(there, tmp_path / "start", target_facts(METHODS[method], target))
    assert told in str(refused.value)


def test_a_layout_written_inside_of_dflash_config_is_read_too(target, tmp_path):
    there = exported("dspark", target, tmp_path / "there")
    block = json.loads((there / "config.json").read_text())["dflash_config"] | {"sample_from_anchor": False}
    as_others_publish(there, sample_from_anchor=None, dflash_config=block)
    with pytest.raises(BadInput, match="sample_from_anchor is False"):
        adopt(there, tmp_path / "start", target_facts(METHODS["dspark"], target))


def test_a_published_dspark_draft_by_its_other_name_and_with_nested_fields(target, tmp_path):
    there = exported("dspark", target, tmp_path / "there")
    config = json.loads((there / "config.json").read_text())
    nested = config["dflash_config"] | {name: config[name] for name in ("markov_rank", "block_size")}
    empty = dict.fromkeys(("markov_rank", "block_size", "sample_from_anchor", "enable_confidence_head"))
    as_others_publish(there, architectures=["Qwen3DSparkModel"], dflash_config=nested, num_target_layers=None, **empty)
    assert adopt(there, tmp_path / "start", target_facts(METHODS["dspark"], target)) == config


TARGETS_LAYERS = {
    "eagle3, a family that norms its queries": ("eagle3", "qwen3", {}),
    "eagle3, experts": ("eagle3", "llama4", {}),
    "eagle3, biases": ("eagle3", "llama", {"attention_bias": True}),
    "dflash, experts": ("dflash", "qwen3_moe", {}),
    "dspark, biases": ("dspark", "qwen3", {"attention_bias": True}),
}
OTHER_SHAPES = {
    "eagle3, wider": ("eagle3", {"draft": {"intermediate_size": 64}}),
    "eagle3, deeper than the target": ("eagle3", {"draft": {"num_hidden_layers": 9}}),
    "dflash, wider": ("dflash", {"draft": {"intermediate_size": 64}}),
    "dspark, wider heads": ("dspark", {"draft": {"head_dim": 32}}),
    "dspark, other keys": ("dspark", {"draft": {"num_key_value_heads": 4}}),
    "dspark, deeper than the target": ("dspark", {"layers": 9}),
}
SETTINGS = ({"initialise": "target"}, {"initialise": "./there", "initialise_else": "target"})


@pytest.mark.parametrize("how", SETTINGS, ids=lambda how: list(how)[-1])
@pytest.mark.parametrize("name", TARGETS_LAYERS)
def test_a_targets_layers_of_another_kind_are_refused_by_its_config_alone(tmp_path, name, how):
    method, family, shape = TARGETS_LAYERS[name]
    path = save_tiny_target(family, tmp_path, **shape)
    with pytest.raises(BadInput, match=f"has others or fewer; take {list(how)[-1]}=random"):
        tiny_training(method, path, **how)


@pytest.mark.parametrize("how", SETTINGS, ids=lambda how: list(how)[-1])
@pytest.mark.parametrize("name", OTHER_SHAPES)
def test_a_draft_of_another_shape_than_the_targets_layers_is_refused_by_its_config_alone(target, name, how):
    method, more = OTHER_SHAPES[name]
    with pytest.raises(BadInput, match=f"has others or fewer; take {list(how)[-1]}=random"):
        tiny_training(method, target, **how, **more)


def test_norms_before_fc_are_no_start_from_the_target(target):
    with pytest.raises(BadInput, match=r"config: initialise=target has .* take draft.fc_norm=false"):
        tiny_training("eagle3", target, initialise="target", draft={"fc_norm": True})


@pytest.mark.parametrize("how", SETTINGS, ids=lambda how: list(how)[-1])
@pytest.mark.parametrize("method", METHOD)
def test_a_target_whose_layers_fit_is_taken(target, method, how):
    assert tiny_training(method, target, **how).start == how["initialise"]


def test_weights_of_a_random_draft_differ_from_a_fresh_one(target):
    """Else the tests above would pass without a weight being read."""
    fresh, random = (
        d.state_dict() for d in (tiny_training("eagle3", target).build("cpu"), random_draft("eagle3", target))
    )
    assert not any(torch.equal(fresh[name], random[name]) for name in fresh)

"""Every damage that SGLang would serve without a word is refused, and named."""

import shutil
import subprocess
import sys

import pytest
import torch

from spec.errors import BadInput
from spec.export import export as exporting
from spec.export.verify import target_facts, verify
from spec.methods import METHODS
from spec.methods.eagle3 import export as eagle3
from spec.storage import open_store
from spec.target.frozen import FrozenTarget
from tests.damaged_drafts import BLOCK_DAMAGES, DAMAGES, change_config, change_weights, eagle, swap_norms
from tests.existing_drafts import exported
from tests.tiny_drafts import random_draft
from tests.tiny_models import save_tiny_target

WEIGHTS = (
    *("fc.weight", "norm.weight", "lm_head.weight"),
    *(f"midlayer.{name}.weight" for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm")),
    *(f"midlayer.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"midlayer.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
)
CONTEXT = 512  # the tiny target's max_position_embeddings


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_tiny_target("llama", tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def trained(target):
    return random_draft(FrozenTarget.load(target, dtype=torch.float32))


def export(draft, folder, target, **settings):
    asked = {"dtype": "bfloat16", "context_length": CONTEXT, "inputs": {}, "lineage": {}} | settings
    return exporting.export(
        METHODS["eagle3"], draft, open_store(folder), target=target_facts(METHODS["eagle3"], target), **asked
    )


@pytest.fixture(scope="module")
def whole(trained, target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    export(trained, folder, target)
    return folder


@pytest.fixture
def draft(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "draft")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_that_the_server_would_not_see_is_refused_by_its_name(draft, target, damage):
    DAMAGES[damage].damage(draft)
    with pytest.raises(BadInput, match=DAMAGES[damage].named):
        verify(draft, target)
    with pytest.raises(BadInput, match=DAMAGES[damage].named):
        verify(draft)  # what the exporter noted of the target is enough


@pytest.fixture(scope="module")
def whole_blocks(target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    return {method: exported(method, target, folder / method) for method in BLOCK_DAMAGES}


@pytest.mark.parametrize(
    ("method", "damage"), [(method, damage) for method, its in BLOCK_DAMAGES.items() for damage in its]
)
def test_a_damaged_block_draft_is_refused_by_its_name(whole_blocks, target, tmp_path, method, damage):
    draft = shutil.copytree(whole_blocks[method], tmp_path / "draft")
    change, named = BLOCK_DAMAGES[method][damage]
    assert verify(draft, target)
    change(draft)
    with pytest.raises(BadInput, match=named):
        verify(draft, target)
    with pytest.raises(BadInput, match=named):
        verify(draft)  # what the exporter noted of the target is enough


def put_infinity(weights):
    weights["lm_head.weight"][-1, -1] = float("inf")


def add_tensor(weights):
    weights["midlayer.self_attn.q_norm.weight"] = torch.ones(16)


def permute_rows(weights):
    weights["lm_head.weight"] = weights["lm_head.weight"].flip(0).contiguous()


def shorten_head(weights):
    weights["lm_head.weight"] = weights["lm_head.weight"][:-1].clone()


def widen(weights):
    weights["norm.weight"] = weights["norm.weight"].float()


def unmark_token(weights):
    weights["t2d"][weights["t2d"].nonzero()[0]] = False


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (put_infinity, "lm_head.weight holds NaN or infinite"),
        (add_tensor, "midlayer.self_attn.q_norm.weight is no tensor of a draft"),
        (permute_rows, "lm_head.weight: not the values that were exported"),
        (shorten_head, r"lm_head.weight has shape \(127, 64\); by config.json it is \(128, 64\)"),
        (widen, "norm.weight has dtype F32; it must be BF16"),
        (unmark_token, "t2d marks 127 tokens, the draft's vocabulary has 128"),
    ],
)
def test_damaged_weights_are_refused(draft, target, damage, named):
    change_weights(draft, damage)
    with pytest.raises(BadInput, match=named):
        verify(draft, target)
    with pytest.raises(BadInput, match=named):
        verify(draft)  # what the exporter noted of the target is enough


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (eagle(1, 3, 4, use_aux_hidden_state=False), "use_aux_hidden_state is not true"),
        (eagle(1, 3, 4, norm_output=True), "norm_output is set"),
        ({"eagle_config": None}, "use_aux_hidden_state is not true"),
        ({"draft_vocab_size": 127}, "by config.json it is"),
        ({"draft_vocab_size": None}, "draft_vocab_size is None"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures is .* needs .*LlamaForCausalLMEagle3"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"head_dim": None}, "head_dim is None; it must be written out"),
        ({"rope_theta": 10001.0}, "rope_theta is 10001.0, and rope_parameters says 10000.0"),
        ({"rope_parameters": None}, "the server would take 10000"),
        ({"attention_bias": True}, "attention_bias is set"),
        ({"torch_dtype": None}, "torch_dtype is None"),
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps is 0.01, was exported as 1e-06"),
    ],
)
def test_damaged_config_is_refused(draft, target, changes, named):
    change_config(draft, **changes)
    with pytest.raises(BadInput, match=named):
        verify(draft, target)
    with pytest.raises(BadInput, match=named):
        verify(draft)


def test_the_served_context_decides_what_is_too_short(draft, target):
    assert verify(draft, target, context_length=512)
    with pytest.raises(BadInput, match="is 512, below the served context length of 513"):
        verify(draft, target, context_length=513)


def test_another_target_is_refused(draft, tmp_path):
    deeper = save_tiny_target("llama", tmp_path / "deeper", num_hidden_layers=10)
    with pytest.raises(BadInput, match=r"for a target of 10 layers the aux layer ids are \[1, 4, 6\]"):
        verify(draft, deeper)
    wider = save_tiny_target("llama", tmp_path / "wider", hidden_size=128)
    with pytest.raises(BadInput, match="target_hidden_size is 64, the target's hidden_size is 128"):
        verify(draft, wider)


@pytest.mark.parametrize("kept", [0, 5, 100, 20000, -1])
def test_truncated_weights_are_refused(draft, target, kept):
    data = (draft / "model.safetensors").read_bytes()
    (draft / "model.safetensors").write_bytes(data[:kept])
    with pytest.raises(BadInput, match="model.safetensors: truncated or not a safetensors file"):
        verify(draft, target)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "draft.json"])
def test_missing_and_empty_files_are_refused(draft, target, name):
    (draft / name).write_bytes(b"")
    with pytest.raises(BadInput, match=name):
        verify(draft, target)
    (draft / name).unlink()
    with pytest.raises(BadInput, match=name):
        verify(draft, target)


def test_a_second_weights_file_is_refused(draft, target):
    shutil.copy(draft / "model.safetensors", draft / "model-2.safetensors")
    with pytest.raises(BadInput, match="model-2.safetensors: does not belong to a draft"):
        verify(draft, target)


def test_the_probe_sees_damage_that_the_marker_vouches_for(trained, target, tmp_path, monkeypatch):
    """An exporter's own mistake: names, shapes, values and hashes are all as they should be."""

    save = exporting.save_file

    def swapped(weights, *rest, **more):
        swap_norms(weights)
        return save(weights, *rest, **more)

    monkeypatch.setattr(exporting, "save_file", swapped)
    with pytest.raises(BadInput, match="does not compute what was trained: from position 0"):
        export(trained, tmp_path / "draft", target)
    assert not (tmp_path / "draft" / "draft.json").exists()


@pytest.mark.parametrize(
    "setting",
    [{"rms_norm_eps": 1e-2}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": 500.0}],
)
def test_the_probe_sees_settings_that_training_did_not_have(trained, target, tmp_path, monkeypatch, setting):
    written = eagle3.sglang_config
    monkeypatch.setattr(eagle3, "sglang_config", lambda *given: written(*given) | setting)
    with pytest.raises(BadInput, match="does not compute what was trained"):
        export(trained, tmp_path / "draft", target)


SHAPES = {
    "whole vocabulary": ({"draft_vocab_size": None}, ("lm_head.weight",)),
    "two layers": (
        {"num_hidden_layers": 2},
        (
            *("layers.1.hidden_norm.weight", "layers.1.post_attention_layernorm.weight"),
            *(f"layers.1.self_attn.{name}_proj.weight" for name in "qkvo"),
            *(f"layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        ),
    ),
    "EAGLE-3.1": (
        {"fc_norm": True, "norm_output": True},
        ("norm.weight", *(f"fc_norm.{at}.weight" for at in range(3))),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_draft_of_another_shape_is_whole_too_and_its_weights_take_part(target, tmp_path, monkeypatch, shape):
    settings, names = SHAPES[shape]
    draft = random_draft(FrozenTarget.load(target, dtype=torch.float32), **settings)
    config = export(draft, tmp_path / "whole", target).facts["config"]
    assert verify(tmp_path / "whole", target)
    assert config["draft_vocab_size"] == (320 if shape == "whole vocabulary" else 128)  # never null
    save = exporting.save_file
    for name in names:

        def damaged(weights, *rest, name=name, **more):
            weights[name] = weights[name].flip(0).contiguous()
            return save(weights, *rest, **more)

        monkeypatch.setattr(exporting, "save_file", damaged)
        with pytest.raises(BadInput, match="does not compute what was trained"):
            export(draft, tmp_path / "damaged", target)


@pytest.mark.parametrize("flag", ["fc_norm", "norm_output"])
def test_a_norm_that_training_had_and_the_config_lost_is_refused(target, tmp_path, flag):
    export(random_draft(FrozenTarget.load(target, dtype=torch.float32), **{flag: True}), tmp_path, target)
    change_config(tmp_path, **{flag: False})
    with pytest.raises(BadInput, match=f"{flag} is False, was exported as True|fc_norm.0.weight"):
        verify(tmp_path, target)


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weight_takes_part_in_the_probe(trained, target, tmp_path, monkeypatch, name):
    save = exporting.save_file

    def damaged(weights, *rest, **more):
        weights[name] = weights[name].flip(0).contiguous()
        return save(weights, *rest, **more)

    monkeypatch.setattr(exporting, "save_file", damaged)
    with pytest.raises(BadInput, match="does not compute what was trained"):
        export(trained, tmp_path / "draft", target)


def test_an_export_with_nan_is_refused_and_leaves_nothing(target, tmp_path):
    draft = random_draft(FrozenTarget.load(target, dtype=torch.float32))
    draft.norm.weight.data[7] = float("nan")
    with pytest.raises(BadInput, match="norm.weight holds NaN"):
        export(draft, tmp_path / "draft", target)
    assert not list((tmp_path / "draft").glob("*"))


def test_files_are_verified_without_torch(whole, target):
    code = "import sys; sys.modules['torch'] = None; from spec.export.verify import verify_files; "
    code += f"from pathlib import Path; verify_files(Path({str(whole)!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

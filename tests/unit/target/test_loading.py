"""Reading a target's files: every layout transformers saves, and a refusal that names the file for every damage."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from spec.errors import BadInput
from spec.storage import open_store
from spec.storage.markers import Marker, describe_files, write_marker
from spec.target.frozen import FrozenTarget
from spec.target.staging import INDEX, STAGED
from tests.tiny_models import FAMILIES, save_tiny_target, tiny_target


def in_shards(family, folder, **overrides):
    """A tiny target in several files with an index, as the large ones come."""
    tiny_target(family, **overrides).save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def weights_by_transformers(path, dtype):
    kind = AutoModelForImageTextToText if '"model_type": "llama4"' in (path / "config.json").read_text() else None
    model = (kind or AutoModelForCausalLM).from_pretrained(path, dtype=dtype)
    return (model.language_model if kind else model).state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_those_of_from_pretrained(tmp_path, family, dtype):
    path = in_shards(family, tmp_path)
    loaded = FrozenTarget.load(path, dtype=dtype).model
    wanted = weights_by_transformers(path, dtype)
    assert loaded.state_dict().keys() == wanted.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == wanted[name].dtype, name
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_the_embedding(tmp_path, tied):
    target = FrozenTarget.load(in_shards("llama", tmp_path, tie_word_embeddings=tied), dtype=torch.float32)
    assert (target.head_weight is target.embed_weight) == tied


def test_a_saved_head_of_a_tied_target_is_read_over(tmp_path):
    path = save_tiny_target("llama", tmp_path, tie_word_embeddings=True)
    rewrite(path / "model.safetensors", lambda tensors: tensors | {"lm_head.weight": torch.zeros(320, 64)})
    target = FrozenTarget.load(path, dtype=torch.float32)
    assert target.head_weight.abs().sum() > 0


def test_experts_fused_on_disk_are_those_split_on_disk(tmp_path):
    split, fused = save_tiny_target("qwen3_moe", tmp_path / "split"), tmp_path / "fused"
    shutil.copytree(split, fused)
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in load_file(split / "model.safetensors")
    save_file(tiny_target("qwen3_moe").state_dict(), fused / "model.safetensors")
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(fused / "model.safetensors")
    one, other = (FrozenTarget.load(path, dtype=torch.float32).model.state_dict() for path in (split, fused))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_vision_tower_is_neither_read_nor_allocated(tmp_path):
    path = save_tiny_target("llama4", tmp_path)
    nan = torch.tensor(float("nan"))
    rewrite(
        path / "model.safetensors",
        lambda tensors: {
            name: tensor if name.startswith("language_model.") else torch.full_like(tensor, nan.item())
            for name, tensor in tensors.items()
        },
    )
    target = FrozenTarget.load(path, dtype=torch.float32)  # NaN anywhere it reads would be refused
    assert sum(p.numel() for p in target.parameters()) == sum(
        p.numel() for p in tiny_target("llama4").language_model.parameters()
    )


def rewrite(file, change):
    save_file(change(load_file(file)), file)


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def shard_with(path, name):
    return path / json.loads((path / INDEX).read_text())["weight_map"][name]


NORM = "model.layers.3.input_layernorm.weight"


def lose(file):
    file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[:-64])


def scribble_on_header(file):
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


def empty(file):
    file.write_bytes(b"")


def fill_with_nan(file):
    rewrite(file, lambda tensors: tensors | {NORM: torch.full_like(tensors[NORM], float("nan"))})


def drop_tensor(file):
    rewrite(file, without(NORM))


def reshape(file):
    rewrite(file, lambda tensors: tensors | {NORM: torch.zeros(65)})


@pytest.mark.parametrize("damage", [lose, cut, scribble_on_header, empty, fill_with_nan, drop_tensor, reshape])
def test_a_damaged_shard_is_named(tmp_path, damage):
    path = in_shards("llama", tmp_path)
    shard = shard_with(path, NORM)
    damage(shard)
    with pytest.raises(BadInput, match=shard.name):
        FrozenTarget.load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: (path / INDEX).write_text("{"), "not JSON"),
        (lambda path: (path / INDEX).write_text("{}"), "no weight_map"),
        (lambda path: (path / INDEX).write_text("[]"), "no weight_map"),
        (lambda path: (path / INDEX).unlink(), "no model.safetensors"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, change, said):
    path = in_shards("llama", tmp_path)
    change(path)
    with pytest.raises(BadInput, match=said):
        FrozenTarget.load(path)


def test_flipped_bits_are_found_by_the_marker_of_staging(tmp_path):
    path = in_shards("llama", tmp_path)
    names = sorted(file.name for file in path.glob("*.safetensors"))
    marker = Marker(step="stage", digest="", settings={}, inputs={}, files=describe_files(path, names))
    write_marker(open_store(path), STAGED, marker)
    FrozenTarget.load(path)
    shard = shard_with(path, NORM)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BadInput, match=f"{shard.name}: damaged"):
        FrozenTarget.load(path)


def test_files_of_another_model_are_refused(tmp_path):
    path = save_tiny_target("llama", tmp_path)
    config = json.loads((path / "config.json").read_text())
    for change, said in [
        ({"num_hidden_layers": 9}, "no weights for model.layers.8"),
        ({"num_hidden_layers": 7}, "model.layers.7.* fits nowhere"),
        ({"intermediate_size": 96}, "has shape .*config.json asks for"),
    ]:
        (path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(BadInput, match=said):
            FrozenTarget.load(path)


@pytest.mark.parametrize("change", [{"hidden_act": "nope"}, {"rope_parameters": {"rope_type": "nope"}}])
def test_a_config_that_no_model_can_be_made_of_is_refused(tmp_path, change):
    path = save_tiny_target("llama", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BadInput, match="transformers cannot make a model of .*'nope'"):
        FrozenTarget.load(path)


def test_a_missing_expert_is_refused(tmp_path):
    path = save_tiny_target("qwen3_moe", tmp_path)
    rewrite(path / "model.safetensors", without("model.layers.2.mlp.experts.1.up_proj.weight"))
    with pytest.raises(BadInput, match="model.safetensors: .*experts"):
        FrozenTarget.load(path)


def test_weights_that_are_not_safetensors_are_refused(tmp_path):
    path = save_tiny_target("llama", tmp_path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(BadInput, match="only safetensors"):
        FrozenTarget.load(path)

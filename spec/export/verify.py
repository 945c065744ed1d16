"""Refuses a damaged draft and names the damage: the exporter's own check, and evaluate's, publish's and fetch's.

SGLang forgives what it should not. It drops tensors whose names it does not know, leaves missing ones uninitialised,
and serves on: the answers stay right and only the accept length falls. So everything it does not check is checked
here: `verify_files` (needs no torch) what stands in the files, `verify_probe` that they compute what was trained.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from spec.errors import BadInput
from spec.export.layout import (
    CONFIG,
    MARKER,
    NORMS,
    VOCABULARY_MAP,
    WEIGHTS,
    default_context,
    rope_scaling,
    weight_shapes,
)
from spec.export.tensors import StoredTensor, read_tensors
from spec.storage import markers, open_store
from spec.storage.markers import Marker

_FIXED = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_SIZES = (
    "hidden_size",
    "target_hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "draft_vocab_size",
    "max_position_embeddings",
)
# Each would make SGLang compute something that was not trained.
_FOREIGN = (
    "attention_bias",
    "bias",
    "fc_norm",
    "mlp_bias",
    "norm_before_fc",
    "norm_output",
    "num_aux_hidden_states",
    "quantization_config",
    "sliding_window",
    "use_aux_norm",
)
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def verify(folder: Path, target: Path | None = None, *, context_length: int | None = None) -> Marker:
    """All checks of a local draft; returns its marker. Raises `BadInput` naming the first damage.

    `target`: directory of the target; without it, what the exporter noted of the target is believed.
    `context_length`: what the draft is to be served with; by default, what it was exported for.
    """
    marker = verify_files(folder, target, context_length=context_length)
    verify_probe(folder, marker)
    return marker


def verify_files(folder: Path, target: Path | None = None, *, context_length: int | None = None) -> Marker:
    """The checks that need no torch: config, names, shapes, dtypes, values, vocabulary map, hashes."""
    marker = read_draft_marker(folder)
    facts = target_facts(target) if target else marker.facts["target"]
    check_files(folder, facts, context_length or marker.facts["context_length"])
    _check_as_exported(folder, marker)
    return marker


def verify_probe(folder: Path, marker: Marker) -> None:
    """The draft's logits on the fixed probe are those that the training module gave when it was exported."""
    from spec.export import probe  # torch

    difference = probe.difference(marker.facts["probe"], probe.answer(folder))
    if difference:
        raise BadInput(
            f"{folder / WEIGHTS}: on the fixed probe the draft does not compute what was trained: {difference}; "
            "some weight or setting is not what it was (norms swapped, a matrix permuted); export it again"
        )


def read_draft_marker(folder: Path) -> Marker:
    """`draft.json` of a draft; `BadInput` if there is none or it is not an exporter's."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such directory; a draft is a directory with {CONFIG}, {WEIGHTS} and {MARKER}")
    marker = markers.read_marker(open_store(folder), MARKER)
    if marker is None:
        raise BadInput(
            f"{folder}: no {MARKER}, so it is not known what was trained; tools/extract_draft_model.py makes it"
        )
    missing = {"target", "context_length", "config", "tensors", "probe"} - marker.facts.keys()
    if marker.step != "extract" or missing:
        raise BadInput(f"{folder / MARKER}: not the marker of an exported draft; export it again")
    return marker


def target_facts(target: Path) -> dict[str, Any]:
    """What of a target's config a draft depends on."""
    from spec.target import families  # transformers takes a second to import

    text = families.text_config_of(families.read_config(target))
    return {
        "model_type": text.model_type,
        "num_hidden_layers": text.num_hidden_layers,
        "feature_layers": list(families.feature_layers(text.num_hidden_layers)),
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
    }


def check_files(folder: Path, target: dict[str, Any], context_length: int | None) -> None:
    """What stands in `config.json` and `model.safetensors` is complete, consistent, and fits `target` and context."""
    config = _read_config(folder / CONFIG)
    _check_config(folder / CONFIG, config)
    _check_target(folder / CONFIG, config, target, context_length or default_context(target["max_position_embeddings"]))
    tensors = _read_weights(folder)
    _check_tensors(folder / WEIGHTS, config, tensors)
    _check_vocabulary(folder / WEIGHTS, tensors["d2t"].array(), tensors["t2d"].array())


# ---------------------------------------------------------------- config.json
def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(f"{path}: missing")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: truncated or not JSON ({error})") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path}: not a JSON object")
    return config


def _check_config(path: Path, config: dict[str, Any]) -> None:
    for name, value in _FIXED.items():
        if config.get(name) != value:
            raise BadInput(f"{path}: {name} is {config.get(name)!r}; SGLang's EAGLE3 loader needs {value!r}")
    for name in _SIZES:
        if type(config.get(name)) is not int or config[name] <= 0:
            raise BadInput(f"{path}: {name} is {config.get(name)!r}; it must be written out, as a positive integer")
    eagle = config.get("eagle_config")
    if not isinstance(eagle, dict) or eagle.get("use_aux_hidden_state") is not True:
        raise BadInput(f"{path}: eagle_config.use_aux_hidden_state is not true: the server would feed no aux layers")
    foreign = [name for name in _FOREIGN if config.get(name) or eagle.get(name)]
    if foreign:
        raise BadInput(f"{path}: {foreign[0]} is set; the draft was not trained with it")
    if not isinstance(config.get("rms_norm_eps"), float):
        raise BadInput(f"{path}: rms_norm_eps is {config.get('rms_norm_eps')!r}; it must be written out")
    if config.get("torch_dtype") not in _DTYPES or config.get("dtype", config["torch_dtype"]) != config["torch_dtype"]:
        raise BadInput(f"{path}: torch_dtype is {config.get('torch_dtype')!r}; it must be one of {', '.join(_DTYPES)}")
    if config["num_attention_heads"] % config["num_key_value_heads"]:
        raise BadInput(f"{path}: num_key_value_heads does not divide num_attention_heads")
    _check_rope(path, config)


def _check_rope(path: Path, config: dict[str, Any]) -> None:
    """Both spellings stand there and agree: transformers 5 reads `rope_parameters`, older ones theta and scaling."""
    new = config.get("rope_parameters")
    if not isinstance(new, dict) or "rope_theta" not in new or "rope_type" not in new:
        raise BadInput(f"{path}: rope_parameters with rope_type and rope_theta missing: the server would take 10000")
    if config.get("rope_theta") != new["rope_theta"] or config.get("rope_scaling") != rope_scaling(new):
        raise BadInput(f"{path}: rope_theta and rope_scaling do not say what rope_parameters says")


def _check_target(path: Path, config: dict[str, Any], target: dict[str, Any], context_length: int) -> None:
    for name, there in (("vocab_size", "vocab_size"), ("target_hidden_size", "hidden_size")):
        if config[name] != target[there]:
            raise BadInput(f"{path}: {name} is {config[name]}, the target's {there} is {target[there]}")
    if config["hidden_size"] != target["hidden_size"]:
        raise BadInput(f"{path}: hidden_size is {config['hidden_size']}, but the embeddings shared by the target have "
                       f"{target['hidden_size']}")  # fmt: skip
    ids = config["eagle_config"].get("eagle_aux_hidden_state_layer_ids")
    if ids != target["feature_layers"]:
        raise BadInput(
            f"{path}: eagle_aux_hidden_state_layer_ids is {ids}; for a target of {target['num_hidden_layers']} layers "
            f"the aux layer ids are {target['feature_layers']} (outputs of layers, 0-based; the server adds 1)"
        )
    if config["max_position_embeddings"] < context_length:
        raise BadInput(
            f"{path}: max_position_embeddings is {config['max_position_embeddings']}, below the served context length "
            f"of {context_length}: acceptance would collapse, or the server crash, beyond it"
        )


# ---------------------------------------------------------------- model.safetensors
def _read_weights(folder: Path) -> dict[str, StoredTensor]:
    if not (folder / WEIGHTS).is_file():
        raise BadInput(f"{folder / WEIGHTS}: missing")
    for path in sorted(folder.iterdir()):
        if path.name != WEIGHTS and (
            path.suffix in (".safetensors", ".bin", ".pt") or path.name.endswith(".index.json")
        ):
            raise BadInput(f"{path}: does not belong to a draft, and the server might load it; remove it")
    return read_tensors(folder / WEIGHTS)


def _check_tensors(path: Path, config: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
    shapes = weight_shapes(config)
    missing, unknown = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing:
        misnamed = f" (it has {', '.join(unknown)}, a name that the server drops)" if unknown else ""
        raise BadInput(f"{path}: {', '.join(missing)} missing{misnamed}: the server would run without, and say nothing")
    if unknown:
        raise BadInput(f"{path}: {', '.join(unknown)} is no tensor of a draft; the server would drop it silently")
    weight_dtype = _DTYPES[config["torch_dtype"]]
    for name, shape in shapes.items():
        dtype = {"d2t": "I64", "t2d": "BOOL"}.get(name, weight_dtype)
        if tensors[name].shape != shape:
            raise BadInput(f"{path}: {name} has shape {tensors[name].shape}; by {CONFIG} it is {shape}")
        if tensors[name].dtype != dtype:
            raise BadInput(f"{path}: {name} has dtype {tensors[name].dtype}; it must be {dtype}")
    for name in sorted(shapes.keys() - set(VOCABULARY_MAP)):
        if not tensors[name].finite():
            raise BadInput(f"{path}: {name} holds NaN or infinite values; train again from an earlier checkpoint")


def _check_vocabulary(path: Path, d2t: np.ndarray, t2d: np.ndarray) -> None:
    """d2t holds offsets: draft id i is target id i + d2t[i], ascending; t2d marks exactly those."""
    targets = np.flatnonzero(t2d)
    ids = np.arange(len(d2t)) + d2t
    if np.array_equal(ids, targets):
        return
    if np.array_equal(d2t, targets):
        raise BadInput(f"{path}: d2t holds absolute target ids; SGLang wants offsets (target id - draft id)")
    if len(targets) != len(d2t):
        raise BadInput(f"{path}: t2d marks {len(targets)} tokens, the draft's vocabulary has {len(d2t)}")
    if ids.min() < 0 or ids.max() >= len(t2d):
        raise BadInput(f"{path}: d2t leads outside the target's vocabulary of {len(t2d)}")
    raise BadInput(f"{path}: d2t and t2d disagree about which {len(d2t)} target tokens the draft can say")


# ---------------------------------------------------------------- as it was exported
def _check_as_exported(folder: Path, marker: Marker) -> None:
    """Whatever changed since the export, by its name, then the hashes of the files."""
    config, exported = _read_config(folder / CONFIG), marker.facts["config"]
    for name in sorted(config.keys() | exported.keys()):
        if config.get(name) != exported.get(name):
            raise BadInput(f"{folder / CONFIG}: {name} is {config.get(name)!r}, was exported as {exported.get(name)!r}")
    hashes = {name: tensor.sha256() for name, tensor in read_tensors(folder / WEIGHTS).items()}
    changed = [name for name in sorted(hashes) if hashes[name] != marker.facts["tensors"].get(name)]
    if changed:
        raise BadInput(
            f"{folder / WEIGHTS}: {_what_changed(changed, hashes, marker.facts['tensors'])}; export it again"
        )
    markers.check_files(folder, marker)


def _what_changed(changed: list[str], hashes: dict[str, str], exported: dict[str, str]) -> str:
    for name in changed:
        source = next((other for other in NORMS if other != name and exported.get(other) == hashes[name]), None)
        if source:
            swapped = "norms swapped: " if hashes.get(source) == exported[name] else ""
            return f"{swapped}{name} holds what was exported as {source}"
    return f"{', '.join(changed)}: not the values that were exported"

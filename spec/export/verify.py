"""Refuses a damaged draft and names the damage: the exporter's own check, and evaluate's, publish's and fetch's.

SGLang forgives what it should not. It drops tensors whose names it does not know, leaves missing ones uninitialised,
and serves on: the answers stay right and only the accept length falls. So everything it does not check is checked
here: `verify_files` (needs no torch) what stands in the files, `verify_probe` that they compute what was trained.
"""

import json
from pathlib import Path
from typing import Any

from spec.errors import BadInput
from spec.methods import method_of
from spec.methods.checks import DTYPES
from spec.methods.files import CONFIG, MARKER, WEIGHTS, default_context
from spec.methods.method import Method
from spec.methods.tensors import StoredTensor, read_tensors
from spec.storage import markers, open_store
from spec.storage.markers import Marker


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
    facts = target_facts(method_of(marker.facts["config"]), target) if target else marker.facts["target"]
    check_files(folder, facts, context_length or marker.facts["context_length"])
    _check_as_exported(folder, marker)
    return marker


def verify_probe(folder: Path, marker: Marker) -> None:
    """The draft's logits on the fixed probe are those that the training module gave when it was exported."""
    import torch

    from spec.export import probe

    draft = method_of(marker.facts["config"]).load(folder, dtype=torch.float32)
    difference = probe.difference(marker.facts["probe"], draft.probe_answer())
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


def target_facts(method: Method, target: Path) -> dict[str, Any]:
    """What of a target's config a draft of `method` depends on."""
    from spec.target import families  # transformers takes a second to import

    text = families.text_config_of(families.read_config(target))
    return {
        "model_type": text.model_type,
        "num_hidden_layers": text.num_hidden_layers,
        **method.target_facts(text),
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
    }


def check_files(folder: Path, target: dict[str, Any], context_length: int | None) -> None:
    """What stands in `config.json` and `model.safetensors` is complete, consistent, and fits `target` and context."""
    config = read_config(folder / CONFIG)
    method = _method_of(folder / CONFIG, config)
    method.check_config(folder / CONFIG, config)
    method.check_target(folder / CONFIG, config, target)
    _check_context(folder / CONFIG, config, context_length or default_context(target["max_position_embeddings"]))
    tensors = _read_weights(folder)
    _check_tensors(folder / WEIGHTS, method, config, tensors)
    method.check_tensors(folder / WEIGHTS, config, tensors)


# ---------------------------------------------------------------- config.json
def _method_of(path: Path, config: dict[str, Any]) -> Method:
    try:
        return method_of(config)
    except BadInput as error:
        raise BadInput(f"{path.parent}/{error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """A draft's `config.json`, before anything is known of it."""
    if not path.is_file():
        raise BadInput(f"{path}: missing")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: truncated or not JSON ({error})") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path}: not a JSON object")
    return config


def _check_context(path: Path, config: dict[str, Any], context_length: int) -> None:
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


def _check_tensors(path: Path, method: Method, config: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
    shapes = method.tensor_shapes(config)
    missing, unknown = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing:
        misnamed = f" (it has {', '.join(unknown)}, a name that the server drops)" if unknown else ""
        raise BadInput(f"{path}: {', '.join(missing)} missing{misnamed}: the server would run without, and say nothing")
    if unknown:
        raise BadInput(f"{path}: {', '.join(unknown)} is no tensor of a draft; the server would drop it silently")
    weight_dtype = DTYPES[config["torch_dtype"]]
    for name, shape in shapes.items():
        dtype = {"d2t": "I64", "t2d": "BOOL"}.get(name, weight_dtype)
        if tensors[name].shape != shape:
            raise BadInput(f"{path}: {name} has shape {tensors[name].shape}; by {CONFIG} it is {shape}")
        if tensors[name].dtype != dtype:
            raise BadInput(f"{path}: {name} has dtype {tensors[name].dtype}; it must be {dtype}")
    for name in sorted(shapes.keys() - method.no_weights):
        if not tensors[name].finite():
            raise BadInput(f"{path}: {name} holds NaN or infinite values; train again from an earlier checkpoint")


# ---------------------------------------------------------------- as it was exported
def _check_as_exported(folder: Path, marker: Marker) -> None:
    """Whatever changed since the export, by its name, then the hashes of the files."""
    config, exported = read_config(folder / CONFIG), marker.facts["config"]
    if changed_field := _changed_field(config, exported):
        raise BadInput(f"{folder / CONFIG}: {changed_field}")
    hashes = {name: tensor.sha256() for name, tensor in read_tensors(folder / WEIGHTS).items()}
    changed = [name for name in sorted(hashes) if hashes[name] != marker.facts["tensors"].get(name)]
    if changed:
        raise BadInput(f"{folder / WEIGHTS}: {_what_changed(changed, hashes, marker)}; export it again")
    markers.check_files(folder, marker)


def _changed_field(there: dict[str, Any], exported: dict[str, Any], at: str = "") -> str:
    """The first field that differs, one inside a group by its whole name; "" where all are equal."""
    for name in sorted(there.keys() | exported.keys()):
        its, was = there.get(name), exported.get(name)
        if its == was:
            continue
        if isinstance(its, dict) and isinstance(was, dict):
            if deeper := _changed_field(its, was, f"{at}{name}."):
                return deeper
            continue  # null on one side and nothing on the other
        return f"{at}{name} is {its!r}, was exported as {was!r}"
    return ""


def _what_changed(changed: list[str], hashes: dict[str, str], marker: Marker) -> str:
    config, exported = marker.facts["config"], marker.facts["tensors"]
    norms = method_of(config).norms(config)
    for name in changed:
        source = next((other for other in exported if other != name and exported[other] == hashes[name]), None)
        if source:
            what = "norms swapped: " if name in norms and source in norms else "exchanged: "
            swapped = what if hashes.get(source) == exported[name] else ""
            return f"{swapped}{name} holds what was exported as {source}"
    return f"{', '.join(changed)}: not the values that were exported"

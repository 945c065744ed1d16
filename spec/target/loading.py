"""Loading a target that no host can hold: an empty model first, then each rank reads only what it owns, layer by layer.

The renaming, merging of experts and slicing for a rank's shard are transformers' own (`core_model_loading`); here
stand the order (so that a host holds its shard plus a layer in passing, never the model) and the refusals.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    set_param_for_module,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from spec.errors import BadInput
from spec.target.checkpoint_files import check_staged_files, short, tensor_files
from spec.target.document_attention import NAME as DOCUMENT_ATTENTION
from spec.target.families import Family, model_class, text_config_of
from spec.target.norms import fuse_norms
from spec.target.sharding import local_part


def empty_model(config: PretrainedConfig, family: Family, dtype: torch.dtype) -> PreTrainedModel:
    """The text model on the meta device: no memory, every shape and dtype in place, no vision tower."""
    text = text_config_of(config)
    if getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None):
        raise BadInput("the target is quantised; features come from the full weights: use its bf16 release")
    if getattr(text, "use_sliding_window", False):
        raise BadInput("the target uses sliding-window attention, which the drafts of this project do not support")
    try:
        with torch.device("meta"):
            model = model_class(family)._from_config(text, dtype=dtype, attn_implementation=DOCUMENT_ATTENTION)
    except (KeyError, ValueError, TypeError) as error:  # a word that it does not know, a number that does not fit
        raise BadInput(f"transformers cannot make a model of the target's config.json: {error!r}") from error
    family.adapt(model)
    fuse_norms(model)
    return model.eval().requires_grad_(False)


def fill(model: PreTrainedModel, folder: Path, family: Family, device: torch.device) -> None:
    """Read the weights of `folder` into an empty `model`, whose layers may already be split over ranks.

    `BadInput` where a file is missing, cut short or damaged, a tensor is missing, of another shape, not finite, or of
    a layer that the config does not have.
    """
    check_staged_files(
        folder, part=int(os.environ.get("LOCAL_RANK", 0)), parts=int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    )
    files = {
        name.removeprefix(family.wrapped_as): (name, path)
        for name, path in tensor_files(folder).items()
        if name.startswith(family.wrapped_as)
    }
    missing = set(model.state_dict())
    if model.config.tie_word_embeddings:
        missing.discard("lm_head.weight")
        files.pop("lm_head.weight", None)
    for group in _by_layer(files):
        missing &= _fill_group(model, {name: files[name] for name in group}, device)
    if missing:
        raise BadInput(f"{folder}: no weights for {short(missing)}; the files are not those of its config.json")
    model.tie_weights()
    _refill_buffers(model, device)
    model.requires_grad_(False)


def _fill_group(model: PreTrainedModel, group: dict[str, tuple[str, Path]], device: torch.device) -> set[str]:
    """Read one layer's tensors; the names of the model's tensors that it did not fill."""
    mapping = get_model_conversion_mapping(model)
    settings = LoadStateDictConfig(
        dtype=model.dtype,
        dtype_plan=model._get_dtype_plan(model.dtype),
        device_map={"": device},
        weight_mapping=mapping,  # type: ignore[arg-type]
    )
    elsewhere = _merged_elsewhere(model, group, mapping)
    group = {name: place for name, place in group.items() if name not in elsewhere}
    paths = {path for _, path in group.values()}
    # `pread` and not `mmap`: exactly the slices that this rank owns are read, and none stays mapped.
    opened = {path: safe_open(path, framework="pt", backend="pread") for path in paths}
    try:
        slices = {name: opened[path].get_slice(full_name) for name, (full_name, path) in group.items()}
        with _no_progress_bar():
            report, _ = convert_and_load_state_dict_in_model(model, slices, settings)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{short(map(str, paths))}: cannot be read ({error}); stage the model again") from error
    model._adjust_missing_and_unexpected_keys(report)  # buffers that old releases saved
    for name in set(elsewhere.values()):
        part = torch.empty_like(local_part(model.get_parameter(name)), device=device)
        set_param_for_module(model, name, part, report, None)  # type: ignore[arg-type]
    if report.unexpected_keys:
        where = _files_of(min(report.unexpected_keys), group)
        raise BadInput(f"{where}: {short(report.unexpected_keys)} fits nowhere in the model of config.json")
    if report.mismatched_keys:
        name, there, wanted = min(report.mismatched_keys)
        raise BadInput(f"{_files_of(name, group)}: {name} has shape {list(there)}, config.json asks for {list(wanted)}")
    for name, reason in report.conversion_errors.items():
        raise BadInput(f"{_files_of(name, group)}: {name} cannot be made from the tensors there: {reason}")
    for name in sorted(set(model.state_dict()) - report.missing_keys):
        if not _finite(model.get_parameter(name)):
            raise BadInput(
                f"{_files_of(name, group)}: {name} holds NaN or infinity: damaged; delete the file and stage it again"
            )
    return report.missing_keys


def _merged_elsewhere(model: PreTrainedModel, names: Iterable[str], mapping: list) -> dict[str, str]:
    """The experts of which this rank owns none, as there may be more ranks than experts: their names in the files, and
    that of the model's tensor they are merged into. transformers would stack the none that it read.
    """
    empty = {name for name, parameter in model.named_parameters() if not local_part(parameter).numel()}
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if entry not in converters]
    renamed = {name: rename_source_key(name, renamings, converters)[0] for name in names} if empty else {}
    return {name: merged for name, merged in renamed.items() if merged in empty and name != merged}


def _files_of(name: str, group: dict[str, tuple[str, Path]]) -> str:
    """The file that a model's tensor comes from; several where it is merged from the experts of a layer."""
    if name in group:
        return str(group[name][1])
    module = name.rpartition(".")[0]
    return short({str(path) for part, (_, path) in group.items() if part.startswith(module)})


def _by_layer(names: Iterable[str]) -> list[list[str]]:
    """`names` in groups: one a decoder layer, in order, and one for all that is outside the layers."""
    groups: dict[int, list[str]] = {}
    for name in names:
        layer = re.search(r"\blayers\.(\d+)\.", name)
        groups.setdefault(int(layer[1]) if layer else -1, []).append(name)
    return [groups[layer] for layer in sorted(groups)]


def _finite(parameter: torch.Tensor) -> bool:
    """Whether this rank's part is; damaged bytes are often NaN or infinite, and would be fed to every step."""
    part = local_part(parameter)
    return not part.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(part))).all())


def _refill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the rotary frequencies: no file holds them, and on the meta device they have no values."""
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    left = [name for name, tensor in [*model.named_buffers(), *model.named_parameters()] if tensor.is_meta]
    if left:
        raise AssertionError(f"still without values: {short(left)}")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws a bar for each call, which would be one a layer."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()

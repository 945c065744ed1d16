"""A draft that others published, written as our own exports are: from then on it is checked and read as one of ours."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from spec.errors import BadInput
from spec.export.verify import check_files
from spec.methods import method_of_published
from spec.methods.files import CONFIG, WEIGHTS
from spec.methods.tensors import read_tensors
from spec.publishing.existing import read_config
from spec.storage.markers import Json


def adopt(there: Path, folder: Path, target: Json, context_length: int | None = None) -> Json:
    """Write the draft in `there` to `folder` as config.json and model.safetensors; returns that config.

    `target` are `verify.target_facts`. Values stay as they are: where tensors have several dtypes, all get the widest.
    `BadInput` names what is missing, damaged or of a kind that is not known; `context_length`: what it is to be served
    with, by default what its config says that it knows.
    """
    method = method_of_published(read_config(there))
    if not (there / WEIGHTS).is_file():
        raise BadInput(f"{there / WEIGHTS}: missing; a draft is {CONFIG} and one file of weights, {WEIGHTS}")
    read_tensors(there / WEIGHTS)  # names a file that is cut short
    served = method.as_served(read_config(there), target)
    config, tensors = method.adopt(served, load_file(there / WEIGHTS))
    dtype = _widest(tensors)
    name = str(dtype).removeprefix("torch.")
    config |= {"torch_dtype": name, "dtype": name}
    tensors = {name: its.to(dtype) if its.is_floating_point() else its for name, its in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: its.contiguous() for name, its in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    check_files(folder, target, context_length or config.get("max_position_embeddings"))
    return config


def _widest(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    dtype = torch.bfloat16
    dtypes = {its.dtype for its in tensors.values() if its.is_floating_point()}
    if dtypes:
        dtype = dtypes.pop()
    for other in dtypes:
        dtype = torch.promote_types(dtype, other)
    return dtype

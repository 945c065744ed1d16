"""Writes a checkpoint's draft as SGLang loads it, then reads back and checks what it wrote."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from spec.export import probe
from spec.export.verify import check_files, verify_probe
from spec.methods.files import CONFIG, MARKER, WEIGHTS
from spec.methods.method import Method
from spec.methods.tensors import read_tensors
from spec.storage import Store
from spec.storage.markers import Marker, describe_files, write_marker

STEP = "extract"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export(
    method: Method,
    draft: nn.Module,
    output: Store,
    *,
    target: dict[str, Any],
    dtype: str,
    context_length: int,
    inputs: dict[str, Any],
    lineage: dict[str, Any],
) -> Marker:
    """Write `draft` to `output` as config.json, model.safetensors and, last, draft.json; returns that marker.

    `target` are `verify.target_facts`; `inputs` and `lineage` go into the marker. Raises `BadInput`, and writes
    nothing, if the exported draft is not complete, not finite, or computes other logits than `draft` itself.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = method.server_config(draft, dtype, context_length)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        weights = {
            name: _stored(tensor, None if name in method.no_weights else DTYPES[dtype])
            for name, tensor in draft.state_dict().items()
        }
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        check_files(folder, target, context_length)
        settings = {"dtype": dtype, "context_length": context_length}
        marker = Marker.of(
            STEP,
            settings,
            inputs,
            files=describe_files(folder, [CONFIG, WEIGHTS]),
            counts={"parameters": sum(w.numel() for name, w in weights.items() if name not in method.no_weights)},
            facts={
                **lineage,
                "target": target,
                "context_length": context_length,
                "config": config,
                "tensors": {name: stored.sha256() for name, stored in read_tensors(folder / WEIGHTS).items()},
                "probe": probe.describe(method.trained_answer(draft, DTYPES[dtype])),
            },
        )
        verify_probe(folder, marker)
        for name in marker.files:
            output.upload(name, folder / name)
    return write_marker(output, MARKER, marker)


def _stored(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor if dtype is None else tensor.to(dtype)

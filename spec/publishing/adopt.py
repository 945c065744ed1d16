"""A draft that others published, written as our own exports are: from then on it is checked and read as one of ours."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from spec.conversations.lineage import read_run
from spec.errors import BadInput
from spec.export import probe
from spec.export.export import STEP
from spec.export.verify import check_files, read_config, target_facts, verify_files
from spec.methods import method_of_published
from spec.methods.checks import check_mask
from spec.methods.files import CONFIG, MARKER, WEIGHTS
from spec.methods.method import Method
from spec.methods.tensors import read_tensors
from spec.publishing.existing import fetch, fetch_rest, resolve, weight_files
from spec.samples.dataset import TOKENS
from spec.storage import Store, markers
from spec.storage.markers import Json, Marker, describe_files, read_marker, write_marker


def adopt(there: Path, folder: Path, target: Json, context_length: int | None = None) -> Json:
    """Write the draft in `there` to `folder` as config.json and model.safetensors; returns that config.

    `target` are `verify.target_facts`. Values stay as they are: where tensors have several dtypes, all get the widest.
    `BadInput` names what is missing, damaged or of a kind that is not known; `context_length`: what it is to be served
    with, by default what its config says that it knows.
    """
    method = method_of_published(read_config(there / CONFIG))
    config, tensors = method.adopt(served_config(there, method, target), _weights(there))
    dtype = _widest(tensors)
    name = str(dtype).removeprefix("torch.")
    config |= {"torch_dtype": name, "dtype": name}
    tensors = {name: its.to(dtype) if its.is_floating_point() else its for name, its in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: its.contiguous() for name, its in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    try:
        check_files(folder, target, context_length or config.get("max_position_embeddings"))
    except BadInput as error:
        raise BadInput(str(error).replace(f"{folder}/", f"{there}/")) from error
    return config


def served_config(there: Path, method: Method, target: Json) -> Json:
    """The config of the draft in `there` as ours are, checked before anything is made from it; see `Method.as_served`.

    Its dtype is that of its weights, whatever it says.
    """
    config = method.as_served(read_config(there / CONFIG), target)
    method.check_config(there / CONFIG, config | {"torch_dtype": "float32", "dtype": "float32"})
    return config


def verify_published(there: Path, target: Path, *, context_length: int | None = None) -> Json:
    """All checks of a draft of which only its files are known, against the target's directory; returns its config."""
    with tempfile.TemporaryDirectory(prefix="verify-draft-") as scratch:
        ours = Path(scratch)
        method = method_of_published(read_config(there / CONFIG))
        config = adopt(there, ours, target_facts(method, target), context_length)
        _answer(method, ours)
    return config


def bring(run: Store, url: str, target: Path, *, overwrite: bool = False) -> Marker:
    """Have RUN/draft hold the draft that is published at `url` (see `existing.resolve`), as if it had been exported
    there; returns its marker. Which version it is, is settled once for the run.

    `BadInput` where the run has another draft, unless `overwrite`, where none is at `url`, or where its mask token is
    a word of the run's samples.
    """
    output, settings = run.at("draft"), {"published": url}
    found = read_marker(output, MARKER)
    if found and not overwrite:
        if found.settings == settings:
            return found
        raise BadInput(f"{output.url} holds another draft than {url}; --overwrite replaces it, or give another run")
    source = resolve(url)
    if source is None:
        raise BadInput(f"{url}: no draft is there")
    with tempfile.TemporaryDirectory(prefix="bring-draft-") as scratch:
        there, ours = Path(scratch) / "there", Path(scratch) / "ours"
        fetch(source, CONFIG, there)
        inputs = fetch_rest(source, there)
        if (there / MARKER).is_file():
            verify_files(there, target)
        method = method_of_published(read_config(there / CONFIG))
        facts = target_facts(method, target)
        config = adopt(there, ours, facts)
        _check_texts(run, method.mask_token(config), Path(scratch) / "samples")
        tensors = read_tensors(ours / WEIGHTS)
        marker = Marker.of(
            STEP,
            settings,
            inputs,
            files=describe_files(ours, [CONFIG, WEIGHTS]),
            counts={
                "parameters": sum(its.values.size for name, its in tensors.items() if name not in method.no_weights)
            },
            facts={
                "run": read_run(run),
                "training": {"settings": {}},
                "published": {"at": url, **inputs},
                "target": facts,
                "context_length": config["max_position_embeddings"],
                "config": config,
                "tensors": {name: its.sha256() for name, its in tensors.items()},
                "probe": probe.describe(_answer(method, ours)),
            },
        )
        output.delete(MARKER)  # another draft's: what follows is a mix of two until it is done
        for name in marker.files:
            output.upload(name, ours / name)
    return write_marker(output, MARKER, marker)


def _check_texts(run: Store, mask: int | None, scratch: Path) -> None:
    """What training asks of its samples, of those that the run has."""
    samples = run.at("samples")
    marker = read_marker(samples, "samples.json")
    if mask is None or marker is None:
        return
    texts = {name: file for name, file in marker.files.items() if name.endswith((TOKENS, "prompts.jsonl"))}
    folder = markers.fetch(samples, marker.model_copy(update={"files": texts}), scratch)
    for name in texts:
        if name.endswith(TOKENS):
            ids = np.load(folder / name, mmap_mode="r")
        else:
            rows = map(json.loads, (folder / name).read_text().splitlines())
            ids = np.array([token for row in rows for token in row["input_ids"]])
        check_mask(mask, ids, f"{samples.url}/{name}")


def _weights(there: Path) -> dict[str, torch.Tensor]:
    """All tensors of a published draft, of however many files. `BadInput` names one that is missing or damaged."""
    tensors: dict[str, torch.Tensor] = {}
    for path in (there / name for name in weight_files(there)):
        if not path.is_file():
            raise BadInput(f"{path}: missing; a draft is {CONFIG} and its weights, all files that its index names")
        read_tensors(path)  # names a file that is cut short
        its = load_file(path)
        if twice := sorted(tensors.keys() & its.keys()):
            raise BadInput(f"{path}: {twice[0]} is in another of the draft's files too")
        tensors |= its
    return tensors


def _answer(method: Method, folder: Path) -> torch.Tensor:
    answer = method.load(folder, dtype=torch.float32).probe_answer()
    if not bool(answer.isfinite().all()):
        raise BadInput(f"{folder / WEIGHTS}: what the draft computes on the fixed probe is not finite")
    return answer


def _widest(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """Of the tensors' floating dtypes, the one that all of their values fit into."""
    dtypes = {its.dtype for its in tensors.values() if its.is_floating_point()} or {torch.bfloat16}
    widest = dtypes.pop()
    for other in dtypes:
        widest = torch.promote_types(widest, other)
    return widest

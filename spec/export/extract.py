"""The extract step: finds a run's checkpoint and its target, and has the draft exported into the run."""

import hashlib
import tempfile
import warnings
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import nn

from spec.conversations.lineage import read_run
from spec.errors import BadInput
from spec.export import verify
from spec.export.export import DTYPES, STEP, export
from spec.methods import FIRST, METHODS
from spec.methods.files import MARKER, default_context
from spec.methods.method import Method
from spec.progress import Wait
from spec.samples.held_out import HELD_OUT_BELOW, never_trained_on
from spec.storage import Store, markers, open_store
from spec.storage.markers import Marker
from spec.target.frozen import read_config, text_config_of
from spec.training import checkpoints
from spec.training.inputs import SAMPLES


def find_checkpoint(url: str) -> tuple[Store, str, Store]:
    """The run, and name and store of a complete checkpoint: the one that `url` is, or, of RUN/checkpoints, the best by
    its estimated accept length, the newest where none has an estimate."""
    base, _, last = url.rstrip("/").rpartition("/")
    folder, name = (base, last) if last.startswith("step-") else (url.rstrip("/"), None)
    store = open_store(folder)
    complete = checkpoints.list_complete(store)
    if not complete:
        raise BadInput(f"{folder}: no complete checkpoint; one is a folder step-N with {checkpoints.MARKER} in it")
    if name is not None and name not in complete:
        raise BadInput(f"{url}: no complete checkpoint; there are {', '.join(complete)}")
    best = checkpoints.find_best(store)
    name = name or (best[0] if best else complete[-1])
    return open_store(folder.rpartition("/")[0] or "."), name, store.at(name)


def why_this(run: Store, name: str) -> str:
    """In words and a line, how checkpoint `name` stands to the newest; "" where it is that or has no estimate."""
    store = run.at("checkpoints")
    newest, best = checkpoints.list_complete(store)[-1:], checkpoints.find_best(store)
    if [name] == newest or best is None or best[0] != name:
        return ""
    return (
        f"{name} accepts most on the held-out rows, {best[1]:.3f} tokens a forward by estimate; to export the newest, "
        f"name {newest[0]}\n"
    )


def extract(
    run: Store,
    name: str,
    checkpoint: Store,
    output: Store,
    *,
    target: Path | None = None,
    dtype: str | None = None,
    context_length: int | None = None,
    overwrite: bool = False,
) -> tuple[Marker, bool]:
    """Export the draft of `checkpoint`; returns its marker, and whether there was anything to do.

    `target`: its directory (only `config.json` is read); by default the one the run was trained or answered with.
    `dtype`: by default the target's. `context_length`: the longest that the draft will be served with; by default the
    target's own, but at most `layout.LONGEST_CONTEXT`.
    """
    trained = markers.read_marker(checkpoint, checkpoints.MARKER)
    assert trained is not None  # find_checkpoint has seen it
    lineage = read_run(run)
    target = target or _known_target(trained, lineage)
    config = text_config_of(read_config(target))
    config_hash = hashlib.sha256(config.to_json_string().encode()).hexdigest()[:16]
    if trained.inputs.get("target_config", config_hash) != config_hash:
        raise BadInput(f"{target}: its config is not the one that {checkpoint.url} was trained against; check --target")
    method = METHODS[trained.settings.get("method", FIRST)]
    facts = verify.target_facts(method, target)
    context_length = context_length or default_context(facts["max_position_embeddings"])
    dtype = dtype or str(config.dtype or "bfloat16").removeprefix("torch.")
    if dtype not in DTYPES:
        raise BadInput(f"dtype {dtype}: SGLang serves drafts in {', '.join(DTYPES)}; choose one with --dtype")
    settings = {"dtype": dtype, "context_length": context_length}
    inputs = {"checkpoint": name, "trained": trained.identity, "target": facts}
    found = markers.find_marker(output, MARKER, STEP, settings, inputs, overwrite=overwrite)
    if found:
        return found, False
    with tempfile.TemporaryDirectory() as scratch, Wait(f"{name}, fetched and read"):
        draft = read_draft(method, markers.fetch(checkpoint, trained, Path(scratch)))
    samples = markers.read_marker(run.at("samples"), SAMPLES)
    about = {
        "run": lineage,
        "training": {"settings": trained.settings, **trained.counts, **trained.facts},
        HELD_OUT_BELOW: never_trained_on(samples, trained.facts.get("start")),
    }
    with Wait("the draft, written and compared with the trained one"):
        marker = export(
            method,
            draft,
            output,
            target=facts,
            dtype=dtype,
            context_length=context_length,
            inputs=inputs,
            lineage=about,
        )
    return marker, True


def read_draft(method: Method, folder: Path) -> nn.Module:
    """The draft of the checkpoint in `folder`, in fp32 on the CPU, without its embedding; needs no process group."""
    draft = method.read_draft((folder / checkpoints.DRAFT_CONFIG).read_text())
    with warnings.catch_warnings(action="ignore"):  # it says at length that no process group is there
        dcp.load({"draft": draft.state_dict()}, checkpoint_id=folder, no_dist=True)
    return draft


def _known_target(trained: Marker, lineage: dict) -> Path:
    """The target's directory as training or the server knew it, if it is one on this machine."""
    for known in (trained.facts.get("target"), lineage.get("target", {}).get("model")):
        if known and Path(known).is_dir():
            return Path(known)
    raise BadInput("where the target is, is not known on this machine; name its directory with --target")

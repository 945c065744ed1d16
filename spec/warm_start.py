"""A training that begins from a draft that is there: ours or one that others published, resolved once and for good.

    RUN/start/   config.json and model.safetensors as our exports have them, then start.json: where they come from, at
                 which version, with which SHA-256

The first rank of a run brings it there; from then on the run begins from its own copy, whatever is published meanwhile,
and a checkpoint records which one. Where the place has no draft yet and `initialise_else` allows it, that stands there.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from spec.conversations.lineage import read_run
from spec.errors import BadInput, PassingFault
from spec.export.verify import read_config, target_facts, verify_files
from spec.methods import METHODS, method_of_published
from spec.methods.checks import WORDS
from spec.methods.files import CONFIG, WEIGHTS
from spec.methods.files import MARKER as DRAFT_MARKER
from spec.methods.method import Training
from spec.publishing.adopt import adopt, served_config
from spec.publishing.existing import fetch, fetch_rest, resolve
from spec.ranks import Ranks, first_decides, together
from spec.samples.held_out import HELD_OUT_BELOW
from spec.storage import is_hub_name, markers
from spec.storage.markers import Json, Marker, describe_files, read_marker, write_marker
from spec.training.checkpoints import list_complete
from spec.training.inputs import Inputs

FOLDER, MARKER, STEP = "start", "start.json", "start"


def open_start(cfg: DictConfig, inputs: Inputs, ranks: Ranks, training: Training) -> tuple[Marker | None, str]:
    """Have `training` begin as `initialise` says; gives the marker of what is there, None for a word, and what to tell.

    Every rank calls it; the first one alone asks the source, and only where the run does not hold it yet. `BadInput`
    where the draft is of another method, shape or target, before its weights are fetched.
    """
    if cfg.initialise in WORDS:
        return None, ""
    marker = first_decides(lambda: _recorded(cfg, inputs) or _bring(cfg, inputs, training))
    if not marker.files:
        training.start = marker.inputs["begins"]
        title = METHODS[cfg.method].title
        return marker, f"{cfg.initialise} has no {title} draft to begin from yet: it begins as {training.start}"
    store = inputs.store.at(FOLDER)

    def fetched() -> None:
        if ranks.local_rank == 0:  # for all ranks of its node
            markers.fetch(store, marker, inputs.scratch / FOLDER)

    together(fetched)
    apart = together(lambda: training.begin_from(store.local_path() or inputs.scratch / FOLDER))
    return marker, "; ".join(filter(None, (f"begins from {_named(marker)}", apart)))


def facts(marker: Marker | None) -> Json:
    """What a checkpoint tells of its start: {} where that was nobody's draft."""
    if marker is None or not marker.files:
        return {}
    return {"start": {**marker.settings, **marker.inputs, **marker.facts}}


def identity(marker: Marker | None) -> Json:
    """What a checkpoint records of its start among its inputs, and a resume must find again."""
    return {"start": marker.identity} if marker else {}


def _named(marker: Marker) -> str:
    version, sha256 = marker.inputs["version"], marker.inputs["sha256"][:16]
    at = f" at {version}" if version else ""
    return f"{marker.settings['initialise']}{at}, {METHODS[marker.facts['method']].title}, SHA-256 {sha256}"


def _recorded(cfg: DictConfig, inputs: Inputs) -> Marker | None:
    """What this run began from before; `BadInput` if it trained on something else and is not to begin anew."""
    found = read_marker(inputs.store.at(FOLDER), MARKER)
    begins = found.inputs.get("begins", cfg.initialise_else) if found else None
    if found and (found.settings, begins) == ({"initialise": cfg.initialise}, cfg.initialise_else):
        return found
    if list_complete(inputs.store.at("checkpoints")) and not cfg.overwrite:
        before = _began(found) if found else "otherwise"
        raise BadInput(
            f"{inputs.store.url}/checkpoints is of another training: it began {before}, asked is "
            f"{cfg.initialise}; overwrite=true trains anew"
        )
    return None


def _began(marker: Marker) -> str:
    return f"from {_named(marker)}" if marker.files else f"as {marker.inputs['begins']}"


def _bring(cfg: DictConfig, inputs: Inputs, training: Training) -> Marker:
    method, store, url = METHODS[cfg.method], inputs.store.at(FOLDER), cfg.initialise
    store.delete(MARKER)  # another draft's, if any
    inputs.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=inputs.scratch, prefix="start-") as scratch, _naming(url, scratch):
        there, ours = Path(scratch) / "there", Path(scratch) / "ours"
        source = resolve(url, method)
        if source is not None:
            fetch(source, CONFIG, there)
            its = method_of_published(read_config(there / CONFIG))
            if its.name not in method.begins_from and not cfg.initialise_else:
                known = " or ".join(METHODS[name].title for name in method.begins_from)
                raise BadInput(f"a draft of {its.title} is there; {method.title} begins from one of {known}")
        if source is None or its.name not in method.begins_from:
            return _write_none(cfg, inputs)
        target = target_facts(its, Path(cfg.target))
        training.check_start(served_config(there, its, target))
        resolved = fetch_rest(source, there)
        name, below = _check_ours(there, cfg, inputs) if (there / DRAFT_MARKER).is_file() else (None, None)
        adopt(there, ours, target)
        for file in (CONFIG, WEIGHTS):
            store.upload(file, ours / file)
        marker = Marker.of(
            STEP,
            {"initialise": url},
            resolved,
            files=describe_files(ours, [CONFIG, WEIGHTS]),
            facts={"method": its.name, "target": name, HELD_OUT_BELOW: below},
        )
    return write_marker(store, MARKER, marker)


def _write_none(cfg: DictConfig, inputs: Inputs) -> Marker:
    if not cfg.initialise_else:
        raise BadInput(
            "no draft is there; set initialise_else to begin at random, or as the target, where there is none"
        )
    settings, begins = {"initialise": cfg.initialise}, {"begins": cfg.initialise_else}
    marker = Marker.of(STEP, settings, begins)
    return write_marker(inputs.store.at(FOLDER), MARKER, marker)


def _check_ours(there: Path, cfg: DictConfig, inputs: Inputs) -> tuple[str | None, int | None]:
    """Of a draft that was exported here: whether it is whole, and of this very target.

    Gives that target's name, and below which hash prompts were never trained on.
    """
    marker = verify_files(there, Path(cfg.target))
    theirs, here = (_model(run) for run in (marker.facts.get("run", {}), read_run(inputs.store)))
    if theirs and here and theirs != here:
        raise BadInput(
            f"the draft there was trained for {theirs}, and the answers of this run are {here}'s; if these are one "
            f"model, begin from a copy of its {CONFIG} and {WEIGHTS} alone"
        )
    return theirs, marker.facts.get(HELD_OUT_BELOW)


def _model(run: Json) -> str | None:
    """The name of a run's target on a hub. A folder's says nothing: another machine has it elsewhere."""
    name: Any = run.get("target", {}).get("model")
    return name if name and is_hub_name(name) and not Path(name).exists() else None


@contextmanager
def _naming(url: str, scratch: str) -> Iterator[None]:
    """Put where the draft is in front of what is wrong with it, in place of where its files are for the moment."""
    try:
        yield
    except (BadInput, PassingFault) as error:
        wrong = str(error).removeprefix("config: initialise: ").replace(f"{scratch}/there/", "")
        raise type(error)(f"config: initialise={url}: {wrong}") from error

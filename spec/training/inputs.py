"""What a training run reads, opened and checked against each other before anything large is allocated."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from transformers import PretrainedConfig

from spec.errors import BadInput
from spec.ranks import Ranks, together
from spec.samples.dataset import Samples
from spec.samples.packing import pack
from spec.storage import Store, open_store
from spec.storage.markers import Json, Marker, fetch, read_marker
from spec.target.frozen import read_config, text_config_of
from spec.training.loader import Loader

SAMPLES = "samples.json"


@dataclass(frozen=True)
class Inputs:
    store: Store  # the run
    scratch: Path  # this node's local folder for what comes from or goes to S3
    samples: Path  # local, verified
    target: PretrainedConfig  # of the text model
    identity: Json  # what a checkpoint records of its inputs, and a resume must find again


def open_inputs(cfg: DictConfig, ranks: Ranks) -> Inputs:
    """Open the run and the target's config. `BadInput` names what is missing or does not fit together."""
    store = open_store(cfg.run_dir)
    scratch = Path(cfg.scratch) if cfg.scratch else _own_scratch(store.url)

    def prepared() -> Marker:
        marker = read_marker(store.at("samples"), SAMPLES)
        if marker is None:
            raise BadInput(f"{store.url}/samples/{SAMPLES}: not there; run tools/prepare_data.py {store.url} first")
        if ranks.local_rank == 0:  # for all ranks of its node: they read the same files
            fetch(store.at("samples"), marker, scratch / "samples")
        return marker

    def consistent() -> Inputs:
        target = text_config_of(read_config(cfg.target))
        samples = store.at("samples").local_path() or scratch / "samples"
        config_hash = hashlib.sha256(target.to_json_string().encode()).hexdigest()[:16]
        identity = {"samples": marker.identity, "target_config": config_hash}
        return Inputs(store, scratch, samples, target, identity)

    marker = together(prepared)
    return together(consistent)


def _own_scratch(url: str) -> Path:
    """One folder a run and node: its ranks share what is fetched, other runs do not."""
    return Path(tempfile.gettempdir()) / f"sgl-spec-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def train_loader(cfg: DictConfig, inputs: Inputs, ranks: Ranks) -> Loader:
    rows = Samples.open(inputs.samples / "train")
    return Loader(
        rows,
        _bins(cfg, rows.lengths),
        width=cfg.max_length if cfg.packed else None,
        batch_size=cfg.batch_size,
        accumulation=cfg.gradient_accumulation_steps,
        rank=ranks.rank,
        world=ranks.world,
        seed=cfg.seed,
        row_ids=rows.row_ids,
        device=ranks.device,
    )


def held_out_loader(cfg: DictConfig, inputs: Inputs, ranks: Ranks) -> Loader:
    """The first `evaluate_rows` held-out documents, in a fixed order."""
    rows = Samples.open(inputs.samples / "held_out")
    return Loader(
        rows,
        _bins(cfg, rows.lengths[: cfg.evaluate_rows]),
        width=cfg.max_length if cfg.packed else None,
        batch_size=cfg.batch_size,
        rank=ranks.rank,
        world=ranks.world,
        shuffle=False,
        row_ids=rows.row_ids,
        device=ranks.device,
    )


def _bins(cfg: DictConfig, lengths: np.ndarray) -> list[list[int]]:
    """Rows of a batch as lists of documents: packed, or one document in each."""
    if cfg.packed:
        return pack(lengths, cfg.max_length, seed=cfg.seed)
    if len(lengths) and lengths.max() > cfg.max_length:
        raise BadInput(f"a document of {lengths.max()} tokens exceeds max_length={cfg.max_length}; prepare with that")
    return [[row] for row in range(len(lengths))]

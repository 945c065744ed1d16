"""What a training run reads, opened and checked against each other before anything large is allocated."""

import hashlib
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from safetensors import SafetensorError

from spec.errors import BadInput
from spec.methods.eagle3.draft import DraftConfig
from spec.methods.eagle3.rows import drafted_rows
from spec.ranks import Ranks, together
from spec.samples.dataset import Samples
from spec.samples.packing import pack
from spec.samples.vocabulary import DraftVocabulary
from spec.storage import Store, open_store
from spec.storage.markers import Json, Marker, fetch, read_marker
from spec.target.frozen import read_config, text_config_of
from spec.training.loader import Loader

SAMPLES = "samples.json"
VOCABULARY = "vocab_map.safetensors"


@dataclass(frozen=True)
class Inputs:
    store: Store  # the run
    scratch: Path  # this node's local folder for what comes from or goes to S3
    samples: Path  # local, verified
    draft_config: DraftConfig
    d2t: torch.Tensor  # [draft_vocab] int64 offsets
    t2d: torch.Tensor  # [vocab] bool
    attention_chunk: int | None  # tokens that the target's chunked layers see, where it has such
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
        overrides = {str(name): value for name, value in cfg.draft.items()}
        draft_config = DraftConfig.for_target(target, cfg.draft_vocab_size, **overrides)
        samples = store.at("samples").local_path() or scratch / "samples"
        d2t, t2d = _read_vocabulary(samples / VOCABULARY)
        if len(t2d) != target.vocab_size:
            raise BadInput(
                f"{store.url}/samples/{VOCABULARY} maps a vocabulary of {len(t2d)}, the target {cfg.target} has "
                f"{target.vocab_size}: these samples were prepared for another target"
            )
        if len(d2t) != cfg.draft_vocab_size:
            raise BadInput(
                f"{store.url}/samples/{VOCABULARY} has {len(d2t)} draft tokens, the config says "
                f"{cfg.draft_vocab_size}: set draft_vocab_size={len(d2t)}, or prepare the samples again"
            )
        config_hash = hashlib.sha256(target.to_json_string().encode()).hexdigest()[:16]
        identity = {"samples": marker.identity, "target_config": config_hash}
        chunk = getattr(target, "attention_chunk_size", None)
        return Inputs(store, scratch, samples, draft_config, d2t, t2d, chunk, identity)

    marker = together(prepared)
    return together(consistent)


def _read_vocabulary(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        d2t, t2d = DraftVocabulary.load(path)
        return torch.from_numpy(d2t), torch.from_numpy(t2d)
    except (OSError, SafetensorError, TypeError) as error:
        raise BadInput(f"{path}: not a vocabulary map ({error}); prepare the samples again") from error


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
        device=ranks.device,
        rows_of=partial(drafted_rows, steps=cfg.steps),
        attention_chunk=inputs.attention_chunk,
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
        device=ranks.device,
        rows_of=partial(drafted_rows, steps=cfg.steps),
        attention_chunk=inputs.attention_chunk,
    )


def _bins(cfg: DictConfig, lengths: np.ndarray) -> list[list[int]]:
    """Rows of a batch as lists of documents: packed, or one document in each."""
    if cfg.packed:
        return pack(lengths, cfg.max_length, seed=cfg.seed)
    if len(lengths) and lengths.max() > cfg.max_length:
        raise BadInput(f"a document of {lengths.max()} tokens exceeds max_length={cfg.max_length}; prepare with that")
    return [[row] for row in range(len(lengths))]

"""The training that is asked for, judged before anything starts: its method, its settings, what it begins from."""

import dataclasses
import tempfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from transformers import PretrainedConfig

from spec import settings
from spec.cluster.api import Json
from spec.cluster.preflight import TRAINED, check_number, parameter
from spec.errors import BadInput
from spec.export.verify import read_config
from spec.methods import FIRST, METHODS, method_of_published
from spec.methods.checks import WORDS
from spec.methods.config import check_heads
from spec.methods.files import CONFIG
from spec.methods.method import Method
from spec.publishing import existing
from spec.storage import Store
from spec.storage.markers import read_marker
from spec.target.families import text_config_of
from spec.tuning.settings import check_drafts, drafts_of, numbers

BEGUN = "start/start.json"  # what the run's draft began from


def check_config(name: str, config: str, root: Path) -> None:
    """The recipe's config exists in this image."""
    known = sorted(path.relative_to(root).as_posix() for path in (root / "spec" / "configs").rglob("*.yaml"))
    if config not in known:
        raise BadInput(f"parameter {name}: {config}: no such file; there are {', '.join(known) or 'none'}")


def settings_of(name: str, config: Path, words: str) -> DictConfig:
    """The complete settings of the training: the recipe's config and the words that change it, as training will read
    them hours later. Only the components that they name are not looked up, which takes torch.
    """
    with parameter(name):
        if told := [word for word in words.split() if "${" in word]:
            raise BadInput(f"{told[0]}: trainers have another environment; write the value itself")
        if placed := [word for word in words.split() if word.partition("=")[0] in _PLACES]:
            raise BadInput(f"{placed[0]}: the pipeline itself says where a run and its target are")
        given = OmegaConf.merge(settings.read(config, words.split()), dict.fromkeys(_PLACES, "there"))
        assert isinstance(given, DictConfig)
        return settings.complete(given)


_PLACES = ("run_dir", "target")


def check_draft(name: str, training: DictConfig, target: PretrainedConfig, gpus: int) -> Json:
    """The config of the draft that is to be trained on `gpus`, by the same look at the target's config as training has.

    Only of a RoPE that transformers knows by more than its numbers, nothing is computed, which takes torch.
    """
    with parameter(name):
        text = text_config_of(target)
        draft = METHODS[training.method].draft_config(training, text)
        if gpus:
            check_heads(draft, text, training)
        return dataclasses.asdict(draft)


def check_same_training(name: str, words: str, training: DictConfig, store: Store) -> None:
    """A run that is trained is not trained again: other settings than its draft's are another run's."""
    trained = read_marker(store, TRAINED)
    if trained is None:
        return
    recorded = OmegaConf.create(trained.facts["training"]["settings"])
    if (method := recorded.get("method", FIRST)) != training.method:
        raise BadInput(
            f"parameter config: method={training.method}: this run was trained with {method}; give another run"
        )
    for word in words.split():
        key = word.partition("=")[0]
        there = OmegaConf.select(recorded, key, default=_FREE)
        if there is not _FREE and there != OmegaConf.select(training, key):
            raise BadInput(f"parameter {name}: {word}: this run was trained with {key}={there}; give another run")


_FREE = object()  # a setting that may differ: it decides nothing, and no marker records it


def config_of_draft(run: Store, asked: Json) -> Json:
    """What decides how the run's draft is served: its own config, or that of the draft which is `asked` for."""
    trained = read_marker(run, TRAINED)
    return trained.facts["config"] if trained else asked


def check_learnt(name: str, drafts: str, method: Method, config: Json) -> None:
    """The numbers of drafts a round are ones that a draft of that config has learnt."""
    check_drafts(f"parameter {name}:", drafts_of(f"parameter {name}:", drafts), method, config)


def check_loads(name: str, loads: str, *, most: int) -> None:
    """The servers run `most` requests at once."""
    check_number(name, max(numbers(f"parameter {name}:", loads)), least=1, most=most)


def check_start(name: str, training: DictConfig, run: Store) -> str:
    """There is a draft to begin from where `initialise` says so, one that this method can begin from.

    Returns what there is to tell: where there is none yet, that training begins otherwise.
    """
    place, otherwise, method = training.initialise, training.initialise_else, METHODS[training.method]
    if place in WORDS or run.exists(BEGUN):  # a run that has begun has its start
        return ""
    if not place.startswith("s3://"):
        raise BadInput(
            f"parameter {name}: initialise={place}: trainers ask no hub and share no directory; copy the draft to s3://…"
        )
    with parameter(name), tempfile.TemporaryDirectory() as scratch:
        source = existing.resolve(place, method)
        if source is not None:
            existing.fetch(source, CONFIG, Path(scratch))
            its = method_of_published(read_config(Path(scratch) / CONFIG))
            if its.name in method.begins_from:
                return ""
            if not otherwise:
                raise BadInput(f"{place} holds a draft of {its.title}, which none of {method.title} begins from")
        if not otherwise:
            raise BadInput(f"{place}: no draft is there; initialise_else=random begins without one")
    return f"{place} has no {method.title} draft to begin from yet: training begins as {otherwise}"

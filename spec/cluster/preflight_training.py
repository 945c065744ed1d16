"""The training that is asked for, judged before anything starts: its method, its settings, what it begins from."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import yaml

from spec.cluster.api import Json
from spec.cluster.preflight import TRAINED, check_number, parameter
from spec.errors import BadInput
from spec.export.verify import read_config
from spec.methods import FIRST, method_named, method_of_published
from spec.methods.checks import WORDS
from spec.methods.files import CONFIG
from spec.methods.method import Method
from spec.publishing import existing
from spec.storage import Store
from spec.storage.markers import read_marker
from spec.tuning.settings import check_drafts, drafts_of, numbers

BEGUN = "start/start.json"  # what the run's draft began from


def check_config(name: str, config: str, root: Path) -> None:
    """The recipe's config exists in this image."""
    known = sorted(path.relative_to(root).as_posix() for path in (root / "spec" / "configs").rglob("*.yaml"))
    if config not in known:
        raise BadInput(f"parameter {name}: {config}: no such file; there are {', '.join(known) or 'none'}")


def method_of_training(config: Path, words: str) -> Method:
    """The method that training will take, by the recipe's config and the settings that change it."""
    there = yaml.safe_load(config.read_text())
    return method_named(_by_key(words).get("method", there.get("method", FIRST)))


def settings_of_training(config: Path, words: str, method: Method, root: Path) -> Json:
    """The settings that training will take: those of `words` over the recipe's config, and both over the defaults.

    Groups are not merged as `spec.settings` does, which needs torch: what is known beforehand hangs on none of them.
    """
    given = {key: yaml.safe_load(value) for key, value in _by_key(words).items()}
    return _defaults(method, root) | yaml.safe_load(config.read_text()) | given


def check_settings(name: str, words: str, root: Path, method: Method) -> None:
    """Every word is `key=value`, and the key a setting of the recipe or of its method: else training would refuse it,
    hours later.
    """
    known = _defaults(method, root)
    for word in words.split():
        key, equals, value = word.partition("=")
        if not equals or key.partition(".")[0] not in known:
            raise BadInput(f"parameter {name}: {word}: no setting of {method.title}, as key=value")
        default = _at(known, key)
        if not _may_be(value, default):
            raise BadInput(f"parameter {name}: {word}: {key} is {json.dumps(default)} by default, and no such value")


def _at(settings: Any, key: str, otherwise: Any = None) -> Any:
    """The value of `group.key`; `otherwise` where there is none."""
    for part in key.split("."):
        settings = settings.get(part, otherwise) if isinstance(settings, dict) else otherwise
    return settings


def _may_be(value: str, default: Any) -> bool:
    """Whether `value` is YAML, and a number of its kind, or null, where the default is one."""
    try:
        if yaml.safe_load(value) is None or type(default) not in (int, float):
            return True
        return math.isfinite(type(default)(value))  # 1e-4 is text to YAML
    except (yaml.YAMLError, ValueError):
        return False


def check_same_training(name: str, words: str, store: Store) -> None:
    """A run that is trained is not trained again: other settings than its draft's are another run's."""
    trained = read_marker(store, TRAINED)
    settings = trained.facts["training"]["settings"] if trained else {}
    for word in words.split():
        key, _, asked = word.partition("=")
        there = _at(settings, key, _FREE)
        if there is not _FREE and not _same(there, asked):
            raise BadInput(f"parameter {name}: {word}: this run was trained with {key}={there}; give another run")


_FREE = object()  # a setting that may differ: it decides nothing, and no marker records it


def _same(there: Any, asked: str) -> bool:
    try:
        return there == yaml.safe_load(asked) or float(there) == float(asked)  # 1e-4 is text to YAML
    except (TypeError, ValueError, yaml.YAMLError):
        return False


def config_of_draft(run: Store, settings: Json) -> Json:
    """What decides how the run's draft is served: its own config, or the settings that it is yet to be trained with."""
    trained = read_marker(run, TRAINED)
    return trained.facts["config"] if trained else settings


def check_learnt(name: str, drafts: str, method: Method, config: Json) -> None:
    """The numbers of drafts a round are ones that a draft of that config has learnt."""
    check_drafts(f"parameter {name}:", drafts_of(f"parameter {name}:", drafts), method, config)


def check_loads(name: str, loads: str, *, most: int) -> None:
    """The servers run `most` requests at once."""
    check_number(name, max(numbers(f"parameter {name}:", loads)), least=1, most=most)


def check_start(name: str, words: str, method: Method, run: Store) -> str:
    """There is a draft to begin from where `initialise` says so, one that this method can begin from.

    Returns what there is to tell: where there is none yet, that training begins otherwise.
    """
    settings = _by_key(words)
    place, otherwise = settings.get("initialise", WORDS[0]), settings.get("initialise_else")
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


def _by_key(words: str) -> dict[str, str]:
    """`key=value` words by their keys."""
    pairs = (word.partition("=") for word in words.split())
    return {key: value for key, _, value in pairs}


def _defaults(method: Method, root: Path) -> Json:
    """Of the settings that every method has, and of its own."""
    shared = yaml.safe_load((root / "spec" / "configs" / "defaults.yaml").read_text())
    return shared | yaml.safe_load(method.defaults.read_text())

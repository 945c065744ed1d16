"""The settings of a training run: a target's YAML and the command line over the defaults, checked.

Imports no torch, so that a run on the cluster is refused before it has a GPU; `spec.components` checks the rest.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from spec.errors import BadInput
from spec.methods import FIRST, METHODS, method_named
from spec.methods.checks import nearest

DEFAULTS = Path(__file__).parent / "configs" / "defaults.yaml"

# What decides the numbers of a run, besides the method's own settings. Ranks, rows a rank and shards may differ between
# a stop and a resume; these not.
DECIDING = (
    *("target_dtype", "dtype", "seed", "packed"),
    *("max_length", "epochs", "max_steps", "optimizer", "lr_scheduler", "clip_grad_norm"),
)

_CHOICES = {
    "target_dtype": ("bf16", "fp32"),
    "dtype": ("bf16", "fp32"),
    "target_shard": ("node", "world", "none"),
}
_COUNTS = (
    *("max_length", "epochs", "max_steps", "batch_size", "gradient_accumulation_steps"),
    *("log_every", "evaluate_every", "evaluate_rows", "save_every", "keep_checkpoints"),
)
COMPONENTS = ("optimizer", "lr_scheduler", "metric_logger")
_OPTIONAL = ("epochs", "max_steps", "log_every", "evaluate_every", "clip_grad_norm")


@contextmanager
def reading() -> Iterator[None]:
    """`BadInput` for what is no file of settings: OmegaConf and torchtune raise errors of many kinds."""
    try:
        yield
    except FileNotFoundError as error:
        raise BadInput(f"config: {error.filename!r}: no such file; there are spec/configs/*/*.yaml") from error
    except (UnicodeDecodeError, TypeError, AttributeError) as error:
        raise BadInput(f"config: not a file of settings: {error}") from error
    except (ValueError, AssertionError, YAMLError, OmegaConfBaseException) as error:
        raise BadInput(f"config: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise BadInput(f"config: not a file of settings: {error}") from error


def read(config: Path, words: list[str]) -> DictConfig:
    """A config with `key=value` words over it, still to be checked by `complete`. `BadInput` for what is neither.

    The words are read as torchtune reads the command line, but that it can also take a key away (`~key`).
    """
    with reading():
        merged = OmegaConf.merge(OmegaConf.load(config), *map(_given, words))
        assert isinstance(merged, DictConfig), "not a file of settings: it holds a list"
    return merged


def _given(word: str) -> DictConfig:
    key, equals, value = word.partition("=")
    if not key or not equals or "=" in value:
        raise BadInput(f"{word}: a setting is given as key=value, with one `=`")
    try:
        return OmegaConf.from_dotlist([f"{key}={'null' if value == 'None' else value}"])
    except (YAMLError, OmegaConfBaseException) as error:
        raise BadInput(f"{word}: no value: {str(error).splitlines()[0]}") from error


def complete(given: DictConfig) -> DictConfig:
    """`given` over the method's defaults and all methods'. `BadInput` names the first key or value that cannot be
    meant.
    """
    shared = _defaults(DEFAULTS)
    try:
        method = method_named(given.get("method", shared.method))
        defaults = OmegaConf.merge(shared, _defaults(method.defaults))
        assert isinstance(defaults, DictConfig)
        _check_keys(given, defaults, method.title)
        _check_shape(given, defaults)
        cfg = OmegaConf.merge(defaults, given)
        assert isinstance(cfg, DictConfig)
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise BadInput(f"config: {str(error).splitlines()[0]}") from error
    except TypeError as error:  # of OmegaConf's merge
        raise BadInput(f"config: a list is given whole, as optimizer.betas=[0.9,0.95] ({error})") from error
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise BadInput(f"config: {missing[0]} is not set; add {missing[0]}=... to the command line or the file")
    _check_values(cfg)
    method.check_settings(cfg)
    return cfg


def deciding(cfg: DictConfig) -> dict[str, Any]:
    """The part of the settings that a checkpoint records and a resume must find again."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    own = [str(name) for name in _defaults(METHODS[cfg.method].defaults)]
    named = {} if cfg.method == FIRST else {"method": cfg.method}  # runs from before there were others name none
    return named | {name: plain[name] for name in dict.fromkeys((*DECIDING, *own))}


def _defaults(path: Path) -> DictConfig:
    defaults = OmegaConf.load(path)
    assert isinstance(defaults, DictConfig)
    return defaults


def _check_keys(given: DictConfig, defaults: DictConfig, title: str) -> None:
    known = [str(key) for key in defaults.keys()]  # noqa: SIM118  (`in defaults` leaves out what is still missing)
    for key in given:
        if key in known:
            continue
        of = [other.title for other in METHODS.values() if key in _defaults(other.defaults)]
        if of:
            raise BadInput(f"config: {key!s} is a setting of {' and '.join(of)}; this is {title}")
        inside = [f"{group}.{key!s}" for group in COMPONENTS if key in defaults[group]]
        hint = f"; did you mean {inside[0]!r}?" if inside else nearest(str(key), known)
        raise BadInput(f"config: no setting is called {key!r}{hint}")


def _check_shape(given: DictConfig, defaults: DictConfig) -> None:
    for key in map(str, given):
        if OmegaConf.is_missing(given, key):
            continue
        value = given[key]
        group = not OmegaConf.is_missing(defaults, key) and OmegaConf.is_dict(defaults[key])
        if group != OmegaConf.is_dict(value) and not (key == "metric_logger" and value is None):
            kind = "a group of settings" if group else "one value"
            raise BadInput(f"config: {key} is {kind}; see {DEFAULTS.name} for its form")


def _check_values(cfg: DictConfig) -> None:
    for name in ("run_dir", "target"):
        if not isinstance(cfg[name], str):
            raise BadInput(f"config: {name}={cfg[name]!r}; it is a path: write ./{cfg[name]} for a folder of that name")
    for name, choices in _CHOICES.items():
        if cfg[name] not in choices:
            raise BadInput(f"config: {name}={cfg[name]!r}; it is one of {', '.join(choices)}")
    for name in _COUNTS:
        value = cfg[name]
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInput(f"config: {name}={value!r}; it is a whole number of at least 1")
    if cfg.epochs is None and cfg.max_steps is None:
        raise BadInput("config: neither epochs nor max_steps is set, so training would never end")
    for name in ("packed", "activation_checkpointing", "compile", "cache_features", "keep_best", "overwrite"):
        if not isinstance(cfg[name], bool):
            raise BadInput(f"config: {name}={cfg[name]!r}; it is true or false")
    if cfg.cache_features and cfg.target_shard != "none":
        raise BadInput(
            f"config: cache_features=true with target_shard={cfg.target_shard}: a rank that remembers a batch would "
            "leave the others waiting for its share of the target; set target_shard=none or cache_features=false"
        )
    if not isinstance(cfg.seed, int) or isinstance(cfg.seed, bool) or not 0 <= cfg.seed < 2**32:
        raise BadInput(f"config: seed={cfg.seed!r}; it is a whole number from 0 to {2**32 - 1}")
    if cfg.clip_grad_norm is not None and not (_is_number(cfg.clip_grad_norm) and cfg.clip_grad_norm > 0):
        raise BadInput(f"config: clip_grad_norm={cfg.clip_grad_norm!r}; it is above 0, or null")
    if not _is_number(cfg.timeout_minutes) or cfg.timeout_minutes <= 0:
        raise BadInput(f"config: timeout_minutes={cfg.timeout_minutes!r}; it is a number above 0")
    for name in ("device", "scratch"):
        if cfg[name] is not None and not isinstance(cfg[name], str):
            raise BadInput(f"config: {name}={cfg[name]!r}; it is text, or null")
    _check_optimizer(cfg.optimizer)
    warmup = cfg.lr_scheduler.get("num_warmup_steps", 0) if cfg.lr_scheduler is not None else 0
    if not isinstance(warmup, int) or isinstance(warmup, bool) or warmup < 0:
        raise BadInput(f"config: lr_scheduler.num_warmup_steps={warmup!r}; it is a whole number of steps, from 0 on")


def check_warmup(cfg: DictConfig, steps: int) -> None:
    """Warm-up ends within the run's `steps`: else the learning rate never reaches its own and little is learnt."""
    warmup = cfg.lr_scheduler.get("num_warmup_steps", 0) if cfg.lr_scheduler is not None else 0
    if warmup > steps:
        raise BadInput(
            f"config: lr_scheduler.num_warmup_steps={warmup}: warm-up does not end within the {steps} steps of this "
            f"run; lower it, a tenth of the steps is usual, or train for more epochs"
        )


def _check_optimizer(optimizer: DictConfig) -> None:
    """The numbers that optimizers of every kind have; others are the component's own."""
    ranges = {"lr": "above 0", "weight_decay": "of at least 0", "eps": "above 0"}
    for name, wanted in ranges.items():
        value = optimizer.get(name, 1)
        if not _is_number(value) or value < 0 or (value == 0 and wanted == "above 0"):
            hint = ", without quotes" if isinstance(value, str) else ""
            raise BadInput(f"config: optimizer.{name}={value!r}; it is a number {wanted}{hint}")
    betas = optimizer.get("betas", [0.0, 0.0])
    values = list(betas) if isinstance(betas, ListConfig | list) else []
    if len(values) != 2 or not all(_is_number(value) and 0 <= value < 1 for value in values):
        raise BadInput(f"config: optimizer.betas={betas!r}; it is two numbers from 0 to below 1, as [0.9,0.95]")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Checks that methods share: of an exported `config.json`, and of a group of settings."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spec.errors import BadInput
from spec.methods.files import rope_scaling

Json = dict[str, Any]

# What each way to stretch positions computes with; the server and transformers end in a KeyError without.
_STRETCHED_BY: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor"),
    "proportional": (),
}

MOST_LAYERS = 256  # more than any target has

_AT_ONCE = 1 << 24  # tokens looked through together

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # as config.json and as safetensors name them


def check_sizes(path: Path, config: Json, names: Iterable[str]) -> None:
    for name in names:
        if type(config.get(name)) is not int or config[name] <= 0:
            raise BadInput(f"{path}: {name} is {config.get(name)!r}; it must be written out, as a positive integer")
    check_depth(f"{path}: num_hidden_layers", config["num_hidden_layers"])


def check_depth(name: str, layers: int) -> None:
    """Tensors are listed layer by layer, so that a slip of a few zeros would take hours and all memory."""
    if layers > MOST_LAYERS:
        raise BadInput(f"{name} is {layers}; a draft has at most {MOST_LAYERS}")


def check_numbers(path: Path, config: Json) -> None:
    """Epsilon, dtype, heads and RoPE, each written out: what is not there the server fills in with another value."""
    if not isinstance(config.get("rms_norm_eps"), float):
        raise BadInput(f"{path}: rms_norm_eps is {config.get('rms_norm_eps')!r}; it must be written out")
    if config.get("torch_dtype") not in DTYPES or config.get("dtype", config["torch_dtype"]) != config["torch_dtype"]:
        raise BadInput(f"{path}: torch_dtype is {config.get('torch_dtype')!r}; it must be one of {', '.join(DTYPES)}")
    if config["num_attention_heads"] % config["num_key_value_heads"]:
        raise BadInput(f"{path}: num_key_value_heads does not divide num_attention_heads")
    _check_rope(path, config)


def _check_rope(path: Path, config: Json) -> None:
    """Both spellings stand there and agree: transformers 5 reads `rope_parameters`, older ones theta and scaling."""
    new = config.get("rope_parameters")
    if not isinstance(new, dict) or "rope_theta" not in new or "rope_type" not in new:
        raise BadInput(f"{path}: rope_parameters with rope_type and rope_theta missing: the server would take 10000")
    for name, same in (("rope_theta", new["rope_theta"]), ("rope_scaling", rope_scaling(new))):
        if config.get(name) != same:
            raise BadInput(f"{path}: {name} is {config.get(name)!r}, and rope_parameters says {same!r}")
    if new["rope_theta"] is None:
        raise BadInput(
            f"{path}: rope_theta is missing, and rope_parameters.rope_theta too: the server would take 10000; write "
            "out the one that the draft was trained with, which is its target's as a rule"
        )
    check_rope(f"{path}: rope_parameters", new, config["head_dim"])


def check_rope(name: str, given: Any, head_dim: int) -> None:
    """`BadInput` for `given`, the RoPE that `name` says, where it leaves to the server what it would fill in."""
    if not isinstance(given, dict):
        raise BadInput(f"{name}={given!r}; it is a group of rope_type, rope_theta and what the type needs")
    kind = given.get("rope_type")
    if not isinstance(kind, str) or kind not in _STRETCHED_BY:
        raise BadInput(f"{name}.rope_type is {kind!r}; it is one of {', '.join(_STRETCHED_BY)}")
    _check_number(f"{name}.rope_theta", given.get("rope_theta"))
    for field in _STRETCHED_BY[kind]:
        if kind == "longrope":
            _check_numbers(f"{name}.{field}", given.get(field), head_dim // 2)
        else:
            _check_number(f"{name}.{field}", given.get(field))


def _check_number(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise BadInput(f"{name} is {value!r}; it must be written out, as a number above 0")


def _check_numbers(name: str, values: Any, count: int) -> None:
    if not isinstance(values, list) or len(values) != count:
        raise BadInput(f"{name} is no list of {count} numbers, one for two of head_dim")
    for at, value in enumerate(values):
        _check_number(f"{name}[{at}]", value)


def check_mask(mask: int, ids: np.ndarray, where: str) -> None:
    """`BadInput` if the text of token `ids`, which may be a file mapped into memory, has the mask token as a word."""
    for at in range(0, len(ids), _AT_ONCE):
        if np.any(ids[at : at + _AT_ONCE] == mask):
            raise BadInput(
                f"{where} has token {mask}, which is mask_token_id: a row of the target's embedding that no text uses "
                "(a reserved or a padded one) is what a block draft's mask must be"
            )


def check_start(ours: Json, theirs: Json, settings: Mapping[str, str]) -> None:
    """`BadInput` names the first field in which the draft to begin from is another than the one to be trained.

    `settings`: for each field the setting that would make ours equal, or "" where the target decides it.
    """
    for name, setting in settings.items():
        if theirs.get(name) != ours.get(name):
            advice = f"set {_as_settings(setting, theirs.get(name))}" if setting else "no setting changes it"
            raise BadInput(
                f"config: initialise: the draft there has {name} {theirs.get(name)!r}, the one to be trained "
                f"{ours.get(name)!r}; {advice}"
            )


def _as_settings(name: str, value: Any) -> str:
    """As the command line takes it: one word for each value, without a brace or a quote that a shell would read."""
    if isinstance(value, dict):
        return " ".join(_as_settings(f"{name}.{key}", its) for key, its in value.items())
    return f"{name}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"


def check_initialise(initialise: Any, otherwise: Any) -> None:
    """A word, or where a draft is; `otherwise` is for a place that may still be empty."""
    words = "random, target, or where a draft is: a directory as ./NAME, s3://BUCKET/PREFIX, hf://ORG/NAME"
    if not isinstance(initialise, str) or not (initialise in WORDS or "/" in initialise):
        raise BadInput(f"config: initialise={initialise!r}; it is {words}")
    if otherwise is not None and otherwise not in WORDS:
        raise BadInput(f"config: initialise_else={otherwise!r}; it is one of {', '.join(WORDS)}, or null")
    if otherwise is not None and initialise in WORDS:
        raise BadInput(
            f"config: initialise_else={otherwise} without a place that it is else for: initialise={initialise}"
        )


WORDS = ("random", "target")  # what a draft begins as that is nobody's


def check_names(group: str, node: Mapping[Any, Any], known: set[str]) -> None:
    """`BadInput` for the first setting of the config's `group` that is not `known`."""
    for key in node:
        if key not in known:
            raise BadInput(f"config: {group} has no setting {key!r}{nearest(str(key), known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """What was most likely meant, as the end of an error's line."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"

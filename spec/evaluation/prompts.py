"""The held-out prompts that a draft is judged on, and the tokens that end an answer to them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spec.errors import BadInput
from spec.samples.held_out import prompt_hash
from spec.storage import Store
from spec.storage.markers import read_marker
from spec.target.families import read_config, text_config_of

_NAME = "prompts.jsonl"


@dataclass(frozen=True)
class Asked:
    """What is asked of a target, with a draft or without, here or of a server: the same, or figures do not compare."""

    prompts: tuple[tuple[int, ...], ...]  # token ids, the generation prompt included
    texts: tuple[str, ...]  # what the user said, for people
    max_new_tokens: int
    stop: frozenset[int]
    hashes: tuple[int, ...] = ()  # `prompt_hash` of each: which drafts were trained on it

    @property
    def identity(self) -> dict[str, Any]:
        """What a part of the report records of it."""
        plain = json.dumps([self.prompts, sorted(self.stop)]).encode()
        return {"prompts": hashlib.sha256(plain).hexdigest()[:16], "max_new_tokens": self.max_new_tokens}


def read_asked(run: Store, target: Path, *, count: int, max_new_tokens: int) -> Asked:
    """The first `count` held-out prompts of a run that leave room for an answer in the target's context.

    Raises `BadInput` where nothing is prepared, the file is not what its marker vouches for, or no prompt fits.
    """
    samples = run.at("samples")
    marker = read_marker(samples, "samples.json")
    if marker is None:
        raise BadInput(f"{run.url}/samples: nothing prepared, so no held-out prompts; run tools/prepare_data.py first")
    name = next((name for name in marker.files if name.rpartition("/")[2] == _NAME), _NAME)
    try:
        data = samples.read(name)
    except FileNotFoundError as error:
        raise BadInput(f"{samples.url}/{name}: missing; run tools/prepare_data.py --overwrite") from error
    if name not in marker.files or hashlib.sha256(data).hexdigest() != marker.files[name].sha256:
        raise BadInput(f"{samples.url}/{name}: damaged: not what samples.json vouches for; prepare the samples again")
    config = text_config_of(read_config(target))
    longest = config.max_position_embeddings - max_new_tokens
    rows = [row for row in map(json.loads, data.splitlines()) if len(row["input_ids"]) <= longest][:count]
    if not rows:
        raise BadInput(
            f"{samples.url}/{name}: no prompt leaves room for {max_new_tokens} tokens in the target's context"
        )
    ids = tuple(tuple(row["input_ids"]) for row in rows)
    if max(map(max, ids)) >= config.vocab_size:
        raise BadInput(
            f"{samples.url}/{name}: holds ids beyond {target}'s vocabulary; it was prepared for another target"
        )
    hashes = tuple(prompt_hash(row["messages"]) for row in rows)
    return Asked(ids, tuple(_last_words(row) for row in rows), max_new_tokens, stop_tokens(target), hashes)


def read_tokenizer(target: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(str(target))
    except Exception as error:  # tokenizers raises plain ones
        raise BadInput(f"{target}: no tokenizer that transformers can read ({error}); restore its files") from error


def stop_tokens(target: Path) -> frozenset[int]:
    """The tokens that SGLang ends an answer with (managers/schedule_batch.py): config, generation config, tokenizer."""
    # A wrapper of a text model (Llama 4) has none, and SGLang does not look inside.
    found = [getattr(read_config(target), "eos_token_id", None), read_tokenizer(target).eos_token_id]
    generation = target / "generation_config.json"
    if generation.is_file():
        try:
            found.append(json.loads(generation.read_text()).get("eos_token_id"))
        except (ValueError, AttributeError) as error:
            raise BadInput(f"{generation}: truncated or not a JSON object; restore it ({error})") from error
    return frozenset(token for ids in found if ids is not None for token in (ids if isinstance(ids, list) else [ids]))


def _last_words(row: dict[str, Any]) -> str:
    said = row["messages"][-1]["content"]
    return said if isinstance(said, str) else json.dumps(said)

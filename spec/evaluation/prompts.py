"""The held-out prompts that a draft is judged on, and the tokens that end an answer to them."""

import hashlib
import json
from collections.abc import Callable, Sequence
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
    stop_texts: tuple[str, ...] = ()  # of a suite: texts that end an answer, in it
    temperature: float = 0.0  # 0: greedy
    hashes: tuple[int, ...] = ()  # of held-out prompts, `prompt_hash` of each: which drafts were trained on it

    def check_load(self, requests: int) -> None:
        """`BadInput` if so many requests could never be in flight at once: what is measured would be another load's."""
        if requests > len(self.prompts):
            raise BadInput(
                f"{requests} requests at once: more than the {len(self.prompts)} held-out prompts that are asked, so "
                "never as many were in flight; raise --prompts, or prepare with a larger --held-out"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What a part of the report records of it."""
        plain = json.dumps([self.prompts, sorted(self.stop)]).encode()
        told = {"prompts": hashlib.sha256(plain).hexdigest()[:16], "max_new_tokens": self.max_new_tokens}
        return told | ({"temperature": self.temperature} if self.temperature else {})


def read_asked(run: Store, target: Path, *, count: int, max_new_tokens: int, temperature: float = 0.0) -> Asked:
    """The first `count` held-out prompts of a run that leave room for an answer in the target's context.

    Raises `BadInput` where nothing is prepared, the file is not what its marker vouches for, or no prompt fits.
    """
    name, data = _read_prompts(run)
    config = text_config_of(read_config(target))
    longest = config.max_position_embeddings - max_new_tokens
    rows = [row for row in map(json.loads, data.splitlines()) if len(row["input_ids"]) <= longest][:count]
    if not rows:
        raise BadInput(
            f"{run.url}/samples/{name}: no prompt leaves room for {max_new_tokens} tokens in the target's context"
        )
    ids = tuple(tuple(row["input_ids"]) for row in rows)
    if max(map(max, ids)) >= config.vocab_size:
        raise BadInput(
            f"{run.url}/samples/{name}: holds ids beyond {target}'s vocabulary; it was prepared for another target"
        )
    texts, hashes = tuple(_last_words(row) for row in rows), tuple(prompt_hash(row["messages"]) for row in rows)
    return Asked(ids, texts, max_new_tokens, stop_tokens(target), temperature=temperature, hashes=hashes)


def held_out_ids(run: Store) -> frozenset[str]:
    """Rows of the run's answers that no draft was trained on. Raises as `read_asked` does."""
    return frozenset(json.loads(line).get("id", "") for line in _read_prompts(run)[1].splitlines())


def _read_prompts(run: Store) -> tuple[str, bytes]:
    """The file of held-out prompts, checked: its name, and its lines."""
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
    return name, data


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


def text_ends(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Callable[[list[int], int], int | None]:
    """Where an answer ends by one of `texts`, looked for as SGLang does (`Req.update_finish_state`): after each token.

    Called with the answer's tokens, and how many of them are new; gives how many there are to the end of the text, or
    None.
    """
    longest = max((len(tokenizer.encode(text, add_special_tokens=False)) for text in texts), default=0) + 1

    def ends(tokens: list[int], new: int) -> int | None:
        for count in range(len(tokens) - new + 1, len(tokens) + 1) if texts else ():
            tail = tokenizer.decode(tokens[max(0, count - longest) : count])
            if any(text in tail for text in texts):
                return count
        return None

    return ends


def _last_words(row: dict[str, Any]) -> str:
    said = row["messages"][-1]["content"]
    return said if isinstance(said, str) else json.dumps(said)

"""The prepare step: a run's answers into `samples/`.

answers -> rows of tokens, in parallel processes -> arrays of the two splits -> draft vocabulary -> marker

Answers are read in the order of their shards and ids and written in that order: the same answers give the same
samples, byte for byte, with any number of processes.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from spec.conversations import token_ids
from spec.conversations.lineage import read_run, tokenizer_of
from spec.conversations.shards import EXACT, find_shards, folder_of, read_answers, read_lines
from spec.errors import BadInput
from spec.progress import RowProgress
from spec.samples import statistics
from spec.samples.convert import EMPTY_MASK, HELD_OUT, REJECTS, TRAIN, Converted, Converter, Limits
from spec.samples.dataset import FILES, Samples, SamplesWriter
from spec.samples.held_out import HELD_OUT_BELOW, held_out_below
from spec.samples.parallel import ordered_map
from spec.samples.target import fingerprint, load_tokenizer, target_folder, vocabulary_size
from spec.samples.template import RETOKENISED
from spec.samples.vocabulary import check_size, choose_vocabulary, count_tokens, tokens_present
from spec.storage import Store
from spec.storage.directory import writing
from spec.storage.markers import Json, Marker, describe_files, find_marker, write_marker

STEP = "prepare"
FOLDER = "samples"
MARKER = "samples.json"
VOCABULARY = "vocab_map.safetensors"
PROMPTS = "prompts.jsonl"

_SPLITS = (TRAIN, HELD_OUT)
_FILES = [*(f"{split}/{name}" for split in _SPLITS for name in FILES), f"{HELD_OUT}/{PROMPTS}", VOCABULARY]
_CHUNK = 64  # conversations that a process takes at once


@dataclass(frozen=True)
class Settings:
    """What decides the samples, beside the answers and the tokenizer."""

    chat_template_kwargs: Json | list[Json] = field(default_factory=dict)  # as the server was asked with; all variants
    max_length: int = 2048  # tokens of a row
    truncate: bool = False  # cut longer rows at their end; else their conversation is rejected
    held_out: float = 0.05  # below 1 a share of the prompts, from 1 a number of conversations
    draft_vocab_size: int = 32000


@dataclass(frozen=True)
class Tolerance:
    """The share of conversations that may be of no use. It decides whether samples are made, not which."""

    empty_mask: float = 0.05  # no token bears loss
    retokenised_differently: float = 0.1  # reads back as other tokens than the server wrote
    trust_day: bool = False  # where the template writes the day, it is the one that the server told with each answer


def prepare(
    run: Store,
    target: str,
    settings: Settings,
    *,
    revision: str | None = None,
    tolerance: Tolerance = Tolerance(),
    processes: int = 1,
    overwrite: bool = False,
) -> tuple[Marker, bool]:
    """Make `samples/` of a run with the tokenizer of `target`; gives the marker, and whether anything was to do.

    Raises `BadInput` where the tokenizer is not that of the model that answered, where more conversations than
    `tolerance` allows are of no use, and where none is left; `PassingFault` where a process was killed.
    """
    model = target_folder(target, revision)
    vocab_size = vocabulary_size(model)
    check_size(settings.draft_vocab_size, vocab_size)
    shards = find_shards(run)
    decides = {**asdict(settings), "target_vocab_size": vocab_size}
    inputs = {folder_of(shard): _content_hash(marker) for shard, marker in shards.items()}
    inputs["tokenizer"] = fingerprint(model)
    store = run.at(FOLDER)
    if found := find_marker(store, MARKER, STEP, decides, inputs, overwrite=overwrite):
        return found, False

    started = time.monotonic()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a process
    tokenizer = load_tokenizer(model)
    _check_tokenizer(tokenizer, tokenizer_of(read_run(run)), target)
    answers, exact = (sum(marker.counts.get(name, 0) for marker in shards.values()) for name in ("answers", EXACT))
    processes = min(processes, 1 + answers // (2 * _CHUNK))  # forking does not pay for less
    below = held_out_below(settings.held_out, lambda: read_answers(run))
    with _local_folder(store) as folder, writing(folder):
        results = _converted(run, tokenizer, settings, below, processes, exact < answers, tolerance.trust_day)
        converted = _write(results, folder, answers)
        _check(converted, tolerance)
        facts = _finish(folder, tokenizer, vocab_size, converted, settings)
        seconds = time.monotonic() - started
        tokens = sum(facts[split]["tokens"] for split in _SPLITS)
        facts |= {
            EXACT: converted.exact,
            "why": converted.why,
            HELD_OUT_BELOW: below,
            "seconds": round(seconds, 1),
            "tokens_per_s": round(tokens / seconds),
        }
        facts |= {"trust_day": True} if tolerance.trust_day else {}
        marker = Marker.of(
            STEP,
            decides,
            inputs,
            files=describe_files(folder, _FILES),
            counts={"answers": converted.counts.total()}
            | {name: converted.counts[name] for name in (*_SPLITS, *REJECTS)}
            | dict(converted.counts),
            facts=facts,
        )
        for name in _FILES:
            store.upload(name, folder / name)
    return write_marker(store, MARKER, marker), True


def _check_tokenizer(tokenizer: Any, known: str | None, target: str) -> None:
    """Raise `BadInput` where the server that answered had another tokenizer, as far as `run.json` says."""
    here = token_ids.fingerprint(tokenizer.encode(token_ids.PROBE, add_special_tokens=False))
    if known not in (None, here):
        raise BadInput(
            f"{target}: another tokenizer ({here}) than the server's ({known}); give --tokenizer the target's"
        )


def _converted(
    run: Store, tokenizer: Any, settings: Settings, below: int, processes: int, rendering: bool, trust_day: bool
) -> Iterator[Converted]:
    """The run's answers as rows, some conversations at a time; prompts with a hash `below` this are held out."""
    limits = Limits(settings.max_length, settings.truncate, below, trust_day)
    asked = settings.chat_template_kwargs
    variants = (asked if isinstance(asked, list) else [asked]) if rendering else []
    converter = Converter(tokenizer, variants, limits)
    lines = read_lines(run)

    def convert(some: list[bytes]) -> Converted:
        return converter([row for row in map(json.loads, some) if "reject" not in row])

    return ordered_map(convert, iter(lambda: list(islice(lines, _CHUNK)), []), processes)


def _content_hash(shard: Marker) -> str:
    """Of a shard's answers; the marker itself also says how long they took."""
    return hashlib.sha256(json.dumps({name: its.sha256 for name, its in shard.files.items()}).encode()).hexdigest()[:16]


@contextmanager
def _local_folder(store: Store) -> Iterator[Path]:
    """Where to write: the run itself where it is a directory, else a temporary folder to upload from."""
    if (folder := store.local_path()) is not None:
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="samples-") as scratch:
            yield Path(scratch)


def _write(results: Iterable[Converted], folder: Path, answers: int) -> Converted:
    """Append all rows to their arrays; gives what the conversations came to, the rows and prompts left out."""
    total = Converted()
    prompts: set[bytes] = set()
    with (
        SamplesWriter(folder / TRAIN) as train,
        SamplesWriter(folder / HELD_OUT) as held_out,
        open(folder / HELD_OUT / PROMPTS, "w") as file,
        RowProgress(STEP, answers) as progress,
    ):
        for done in results:
            train.append(*done.rows[TRAIN])
            held_out.append(*done.rows[HELD_OUT])
            for prompt in done.prompts:
                key = hashlib.sha256(str(prompt["input_ids"]).encode()).digest()
                if key not in prompts:  # asked once, however often it was answered
                    file.write(json.dumps(prompt, ensure_ascii=False) + "\n")
                    prompts.add(key)
            total.counts += done.counts
            total.special |= done.special
            total.exact += done.exact
            for split, kinds in done.kinds.items():
                total.kinds[split] += kinds
            total.why = done.why | total.why
            rejects = {name: count for name, count in total.counts.items() if name not in _SPLITS and count}
            progress.update(total.counts.total(), train.tokens + held_out.tokens, rejects=rejects)
    return total


def _check(converted: Converted, tolerance: Tolerance) -> None:
    """Raise `BadInput` where too many conversations are of no use, or none is left."""
    counts = converted.counts
    for bucket, most, advice in (
        (EMPTY_MASK, tolerance.empty_mask, "see what the chat template renders of them, or raise --max-empty"),
        (
            RETOKENISED,
            tolerance.retokenised_differently,
            "give --tokenizer the target's own, or raise --max-retokenised",
        ),
    ):
        if counts[bucket] > most * counts.total():
            raise BadInput(
                f"{bucket}: {counts[bucket]} of {counts.total()} conversations, more than {most:.0%}; "
                f"the first is {converted.why[bucket]}; {advice}"
            )
    if not counts[TRAIN]:
        came_to = ", ".join(f"{name} {count}" for name, count in counts.items()) or "there are no answers"
        raise BadInput(f"nothing is left to train on: {came_to}; see --max-length, --held-out and the filter's rejects")


def _finish(folder: Path, tokenizer: Any, vocab_size: int, converted: Converted, settings: Settings) -> Json:
    """Choose and write the draft's vocabulary; gives the facts of the samples."""
    samples = {split: Samples.open(folder / split) for split in _SPLITS}
    counts = {split: count_tokens(its.input_ids, its.loss_mask, vocab_size) for split, its in samples.items()}
    present = [tokens_present(its.input_ids, vocab_size) for its in samples.values()]
    always = {*converted.special, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
    vocabulary = choose_vocabulary(counts[TRAIN], settings.draft_vocab_size, always)
    vocabulary.save(folder / VOCABULARY)
    return {
        **{
            split: statistics.of_split(samples[split], counts[split], converted.kinds[split], vocabulary)
            for split in _SPLITS
        },
        "lengths": statistics.length_histogram(samples[TRAIN]),
        "vocabulary": {
            "size": settings.draft_vocab_size,
            "seen": int((counts[TRAIN] > 0).sum()),
            "present": int((present[0] | present[1]).sum()),  # in prompts too
            "always": sorted(always),
        },
        "examples": statistics.examples(samples[TRAIN], tokenizer),
    }

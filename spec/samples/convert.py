"""A chunk of answers into rows of tokens: what each worker process does.

A conversation goes in whole or not at all, and is counted once: as `train`, as `held_out`, or in the bucket that
rejected it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from spec.conversations.rows import Reject
from spec.conversations.shards import is_exact
from spec.errors import BadInput
from spec.samples import exact
from spec.samples.held_out import first_prompt, prompt_hash
from spec.samples.offsets import Encoded
from spec.samples.template import RETOKENISED, ChatTemplate, Row
from spec.samples.tokens import KINDS, Sample, Tokens

Conversation = dict[str, Any]  # an answer row: {"id", "messages", "turns"}

TRAIN, HELD_OUT = "train", "held_out"
TOO_LONG, EMPTY_MASK = "too_long", "empty_mask"
REJECTS = (TOO_LONG, RETOKENISED, EMPTY_MASK)


@dataclass(frozen=True)
class Limits:
    max_length: int  # tokens of a row
    truncate: bool  # cut longer rows at their end; else their conversation is rejected
    held_out_below: int  # conversations whose prompt has a lower hash are held out
    trust_day: bool = False  # a template may write the day that a row of text tells


class Rows(NamedTuple):
    """Rows one after the other, as `SamplesWriter.append` takes them."""

    input_ids: np.ndarray  # [total] int32
    loss_mask: np.ndarray  # [total] uint8
    lengths: np.ndarray  # [rows] int64
    ids: np.ndarray  # [rows] uint64, see `row_id`


def _no_kinds() -> dict[str, np.ndarray]:
    return {split: np.zeros(len(KINDS), np.int64) for split in (TRAIN, HELD_OUT)}


@dataclass
class Converted:
    """What some conversations came to."""

    rows: dict[str, Rows] = field(default_factory=dict)  # train and held_out
    counts: Counter[str] = field(default_factory=Counter)  # conversations: train, held_out and each reject
    why: dict[str, str] = field(default_factory=dict)  # reject -> its first conversation, and what was wrong
    prompts: list[dict[str, Any]] = field(default_factory=list)  # of the held-out ones: {"id", "messages", "input_ids"}
    special: set[int] = field(default_factory=set)  # special tokens in training rows
    exact: int = 0  # conversations whose rows are the server's own tokens
    kinds: dict[str, np.ndarray] = field(default_factory=_no_kinds)  # a split -> [kinds] int64, loss-bearing tokens


class Converter:
    """Turns chunks of conversations into rows. Made once, before the workers are forked, which then share it.

    `variants` are the template settings that conversations were asked with; none where all are exact, and the template
    is not needed.
    """

    def __init__(self, tokenizer: Any, variants: list[dict[str, Any]], limits: Limits):
        self._templates = [ChatTemplate(tokenizer, settings, trust_day=limits.trust_day) for settings in variants]
        self._tokens = Tokens(tokenizer)
        self._limits = limits

    def __call__(self, conversations: list[Conversation]) -> Converted:
        """Raises `BadInput`, naming the row, for what is not one answer's fault."""
        done = Converted()
        kept: dict[str, list[tuple[int, Sample]]] = {TRAIN: [], HELD_OUT: []}
        whole = iter(exact.samples_of([row for row in conversations if is_exact(row)], self._tokens.encode))
        rendered = self._rendered([row for row in conversations if not is_exact(row)], done)
        for conversation in conversations:
            with _counting_rejects(done, conversation):
                if is_exact(conversation):
                    samples, done.exact = next(whole), done.exact + 1
                    prompt = samples[0].input_ids[: conversation["turns"][0]["prompt_tokens"]].tolist()
                elif conversation["id"] in rendered:
                    samples, prompt = self._samples(conversation, *rendered[conversation["id"]]), None
                else:
                    continue  # it is a reject
                samples = self._fitting(samples)
                split = HELD_OUT if prompt_hash(conversation["messages"]) < self._limits.held_out_below else TRAIN
                kept[split].extend((row_id(conversation["id"], place), its) for place, its in enumerate(samples))
                done.counts[split] += 1
                if split == HELD_OUT:
                    done.prompts.append(self._prompt(conversation, prompt))
        for split, rows in kept.items():
            done.rows[split], done.kinds[split] = _joined(rows)
        done.special = self._tokens.special_in(done.rows[TRAIN].input_ids)
        return done

    def _rendered(
        self, conversations: list[Conversation], done: Converted
    ) -> dict[str, tuple[list[Row], list[Encoded]]]:
        """The rows of each conversation that the template can render, encoded; the others are counted."""
        rows = {}
        for conversation in conversations:
            with _counting_rejects(done, conversation):
                rows[conversation["id"]] = self._render(conversation)
        encodings = iter(self._tokens.encode_rows([row for its in rows.values() for row in its]))
        return {name: (its, list(islice(encodings, len(its)))) for name, its in rows.items()}

    def _render(self, conversation: Conversation) -> list[Row]:
        if "tools" in conversation:
            raise BadInput("tools, and not the server's tokens: only the server knows what its template made of them")
        answers = sum(message["role"] == "assistant" for message in conversation["messages"])
        if answers != len(conversation["turns"]):
            raise BadInput(
                f"{answers} answers, and the server's counts of {len(conversation['turns'])}; filter it again"
            )
        return self._template(conversation).rows(conversation["messages"], conversation.get("day"))

    def _template(self, conversation: Conversation) -> ChatTemplate:
        return self._templates[conversation.get("variant", 0)]

    def _samples(self, conversation: Conversation, rows: list[Row], encodings: list[Encoded]) -> list[Sample]:
        """A rendered conversation's rows, or `Reject`."""
        turns = conversation["turns"]
        try:
            return [self._tokens.sample(row, its, turns) for row, its in zip(rows, encodings, strict=True)]
        except BadInput as error:
            if not self._template(conversation).is_dated:
                raise
            raise BadInput(f"{error}; or its template wrote another day than {conversation['day']}") from error

    def _fitting(self, samples: list[Sample]) -> list[Sample]:
        """A conversation's rows within the limits, or `Reject`."""
        if not any(sample.loss.any() for sample in samples):
            raise Reject(EMPTY_MASK, "no token bears loss")
        longest, allowed = max(len(sample.input_ids) for sample in samples), self._limits.max_length
        if longest > allowed:
            samples = [Sample(ids[:allowed], loss[:allowed]) for ids, loss in samples if loss[:allowed].any()]
            if not (self._limits.truncate and samples):
                raise Reject(TOO_LONG, f"{longest} tokens")
        return samples

    def _prompt(self, conversation: Conversation, ids: list[int] | None) -> dict[str, Any]:
        """A held-out prompt: what the server was given first, or, where it did not say, what is rendered of it."""
        if ids is None:
            messages = first_prompt(conversation["messages"])
            ids = self._tokens.encode(self._template(conversation).prompt(messages, conversation.get("day")))
        else:
            messages = exact.first_asked(conversation)
        return {"id": conversation["id"], "messages": messages, "input_ids": ids}


def row_id(conversation: str, place: int) -> int:
    """64 bits that stay the same for a conversation's row `place`, however the run is prepared."""
    return int.from_bytes(hashlib.blake2b(f"{conversation}/{place}".encode(), digest_size=8).digest(), "big")


@contextmanager
def _counting_rejects(done: Converted, conversation: Conversation) -> Iterator[None]:
    try:
        yield
    except Reject as reject:
        done.counts[reject.bucket] += 1
        done.why.setdefault(reject.bucket, f"row {conversation['id']}: {reject.detail}")
    except BadInput as error:
        raise BadInput(f"row {conversation['id']}, {error}") from error


def _joined(rows: list[tuple[int, Sample]]) -> tuple[Rows, np.ndarray]:
    """Rows one after the other, and `[kinds]` int64, how many tokens of each kind bear loss in them."""
    none = Sample(np.empty(0, np.int32), np.empty(0, np.uint8))
    ids, loss = (np.concatenate(arrays) for arrays in zip(none, *(sample for _, sample in rows), strict=True))
    lengths = np.array([len(sample.input_ids) for _, sample in rows], dtype=np.int64)
    kinds = np.bincount(loss, minlength=len(KINDS) + 1)[1:]
    return Rows(ids, (loss != 0).view(np.uint8), lengths, np.array([name for name, _ in rows], np.uint64)), kinds

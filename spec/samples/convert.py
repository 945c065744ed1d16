"""A chunk of answers into rows of tokens: what each worker process does.

A conversation goes in whole or not at all, and is counted once: as `train`, as `held_out`, or in the bucket that
rejected it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from spec.conversations.rows import Reject
from spec.errors import BadInput
from spec.samples.held_out import first_prompt, prompt_hash
from spec.samples.offsets import Encoded
from spec.samples.template import RETOKENISED, ChatTemplate, Row
from spec.samples.tokens import Sample, Tokens

Conversation = dict[str, Any]  # an answer row: {"id", "messages", "turns"}

TRAIN, HELD_OUT = "train", "held_out"
TOO_LONG, EMPTY_MASK = "too_long", "empty_mask"
REJECTS = (TOO_LONG, RETOKENISED, EMPTY_MASK)


@dataclass(frozen=True)
class Limits:
    max_length: int  # tokens of a row
    truncate: bool  # cut longer rows at their end; else their conversation is rejected
    held_out_below: int  # conversations whose prompt has a lower hash are held out


class Rows(NamedTuple):
    """Rows one after the other, as `SamplesWriter.append` takes them."""

    input_ids: np.ndarray  # [total] int32
    loss_mask: np.ndarray  # [total] uint8
    lengths: np.ndarray  # [rows] int64


@dataclass
class Converted:
    """What some conversations came to."""

    rows: dict[str, Rows] = field(default_factory=dict)  # train and held_out
    counts: Counter[str] = field(default_factory=Counter)  # conversations: train, held_out and each reject
    why: dict[str, str] = field(default_factory=dict)  # reject -> its first conversation, and what was wrong
    prompts: list[dict[str, Any]] = field(default_factory=list)  # of the held-out ones: {"id", "messages", "input_ids"}
    special: set[int] = field(default_factory=set)  # special tokens in training rows


class Converter:
    """Turns chunks of conversations into rows. Made once, before the workers are forked, which then share it."""

    def __init__(self, tokenizer: Any, template_settings: dict[str, Any], limits: Limits):
        self._template = ChatTemplate(tokenizer, template_settings)
        self._tokens = Tokens(tokenizer)
        self._limits = limits

    def __call__(self, conversations: list[Conversation]) -> Converted:
        """Raises `BadInput`, naming the row, for what is not one answer's fault."""
        done = Converted()
        kept: dict[str, list[Sample]] = {TRAIN: [], HELD_OUT: []}
        rendered: list[tuple[Conversation, list[Row]]] = []
        for conversation in conversations:
            with _counting_rejects(done, conversation):
                rendered.append((conversation, self._render(conversation)))
        encodings = iter(self._tokens.encode_rows([row for _, rows in rendered for row in rows]))
        for conversation, rows in rendered:
            these = list(islice(encodings, len(rows)))
            with _counting_rejects(done, conversation):
                samples = self._samples(conversation, rows, these)
                split = HELD_OUT if prompt_hash(conversation["messages"]) < self._limits.held_out_below else TRAIN
                kept[split].extend(samples)
                done.counts[split] += 1
                if split == HELD_OUT:
                    done.prompts.append(self._prompt(conversation))
        done.rows = {split: _joined(samples) for split, samples in kept.items()}
        done.special = self._tokens.special_in(done.rows[TRAIN].input_ids)
        return done

    def _render(self, conversation: Conversation) -> list[Row]:
        answers = sum(message["role"] == "assistant" for message in conversation["messages"])
        if answers != len(conversation["turns"]):
            raise BadInput(
                f"{answers} answers, and the server's counts of {len(conversation['turns'])}; filter it again"
            )
        return self._template.rows(conversation["messages"])

    def _samples(self, conversation: Conversation, rows: list[Row], encodings: list[Encoded]) -> list[Sample]:
        """The conversation's rows, or `Reject`."""
        turns = conversation["turns"]
        samples = [self._tokens.sample(row, its, turns) for row, its in zip(rows, encodings, strict=True)]
        if not any(sample.loss_mask.any() for sample in samples):
            raise Reject(EMPTY_MASK, "no token bears loss")
        longest, allowed = max(len(sample.input_ids) for sample in samples), self._limits.max_length
        if longest > allowed:
            samples = [Sample(ids[:allowed], mask[:allowed]) for ids, mask in samples if mask[:allowed].any()]
            if not (self._limits.truncate and samples):
                raise Reject(TOO_LONG, f"{longest} tokens")
        return samples

    def _prompt(self, conversation: Conversation) -> dict[str, Any]:
        messages = first_prompt(conversation["messages"])
        ids = self._tokens.encode(self._template.prompt(messages))
        return {"id": conversation["id"], "messages": messages, "input_ids": ids}


@contextmanager
def _counting_rejects(done: Converted, conversation: Conversation) -> Iterator[None]:
    try:
        yield
    except Reject as reject:
        done.counts[reject.bucket] += 1
        done.why.setdefault(reject.bucket, f"row {conversation['id']}: {reject.detail}")
    except BadInput as error:
        raise BadInput(f"row {conversation['id']}, {error}") from error


def _joined(samples: list[Sample]) -> Rows:
    none = Sample(np.empty(0, np.int32), np.empty(0, np.uint8))
    ids, mask = (np.concatenate(arrays) for arrays in zip(none, *samples, strict=True))
    return Rows(ids, mask, np.array([len(sample.input_ids) for sample in samples], dtype=np.int64))

"""Runs of made-up answers, with a server's tokens and without, and the texts that their conversations are rendered to.

The words are Python's own manual, cut at random into two turns of about 1,000 tokens of the Llama 3 tokenizer. Some
conversations are made and counted one by one; more of them are one's first turn with another's second.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from bench.rounds import Json
from spec.conversations import token_ids
from spec.samples.target import load_tokenizer
from tests.answered import answered, answered_run, chat
from tests.runs import row_id

MADE = 2000  # conversations made one by one


@dataclass(frozen=True)
class Made:
    """A conversation, and what its turns add to a text and to a prompt."""

    row: Json
    first: str  # the text of the first turn
    second: str  # what the second adds to it
    tokens: int  # of `first`
    ids: list[Json]  # of each turn: what a server that gives its tokens says of it


def write_corpus(folder: Path, target: Path, conversations: int) -> None:
    """`folder/run`, `folder/exact`: finished answers without and with tokens; `folder/texts.jsonl`: a text a line."""
    tokenizer = load_tokenizer(target)
    cut = _cutter()
    made = [_make(tokenizer, cut) for _ in range(min(conversations, MADE))]
    rows, exact = [], []
    with open(folder / "texts.jsonl", "w") as file:
        for row, ids, text in _joined(made, conversations):
            rows.append(row)
            exact.append(row | {"turns": [turn | its for turn, its in zip(row["turns"], ids, strict=True)]})
            file.write(json.dumps(text) + "\n")
    answered_run(folder / "run", rows, target)
    answered_run(folder / "exact", exact, target)


def read_texts(folder: Path) -> Iterator[str]:
    """One by one: gigabytes in this process would slow down each fork and each look at its memory."""
    with open(folder / "texts.jsonl") as file:
        yield from map(json.loads, file)


def _cutter() -> Callable[[int], str]:
    """Gives a passage of about so many characters."""
    manual = "\n\n".join(topics[name] for name in sorted(topics))
    rng = random.Random(0)

    def cut(mean: int) -> str:
        size = int(rng.lognormvariate(0, 0.5) * mean)
        start = rng.randrange(len(manual) - size)
        return manual[start : start + size].strip() or "Yes."

    return cut


def _make(tokenizer: Any, cut: Callable[[int], str]) -> Made:
    messages = chat(*(cut(size) for size in (400, 1650, 250, 1400)))
    written = [message["content"] + tokenizer.eos_token for message in messages[1::2]]
    first, whole = (tokenizer.apply_chat_template(part, tokenize=False) for part in (messages[:2], messages))
    if not whole.startswith(first):
        raise ValueError("this chat template renders a first turn in another way once a second follows")
    tokens = len(tokenizer(first, add_special_tokens=False).input_ids)
    prompts = [
        tokenizer.apply_chat_template(messages[:end], tokenize=False, add_generation_prompt=True) for end in (1, 3)
    ]
    new = [prompts[0], prompts[1].removeprefix(prompts[0] + written[0])]
    turns = [{"shared": 0}, {}]  # what the second turn shares is the first one's length, whichever that is
    for turn, prompt, answer in zip(turns, new, written, strict=True):
        for name, text in (("prompt_ids", prompt), ("response_ids", answer)):
            turn[name] = token_ids.encode(tokenizer(text, add_special_tokens=False).input_ids)
    return Made(answered(tokenizer, messages, written), first, whole.removeprefix(first), tokens, turns)


def _joined(made: list[Made], conversations: int) -> Iterator[tuple[Json, list[Json], str]]:
    for index in range(conversations):
        again, place = divmod(index, len(made))
        a, b = made[place], made[(place + again) % len(made)]
        second = b.row["turns"][1]
        turns = [a.row["turns"][0], second | {"prompt_tokens": second["prompt_tokens"] - b.tokens + a.tokens}]
        messages = a.row["messages"][:2] + b.row["messages"][2:]
        shared = turns[0]["prompt_tokens"] + turns[0]["completion_tokens"]
        row = {"id": row_id(json.dumps(messages)), "messages": messages, "turns": turns}
        yield row, [a.ids[0], {"shared": shared, **b.ids[1]}], a.first + b.second

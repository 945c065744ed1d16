"""Rows of tokens as the server itself read and wrote them: no template and no tokenizer comes between.

    turn 1   prompt_ids  response_ids
    turn 2   the first `shared` tokens of turn 1, prompt_ids  response_ids

Where `shared` is all of turn 1, turn 2 continues it and both are one row. Where it is less (a template that leaves
earlier reasoning out, an answer that reads back as other tokens), the target never saw the two together, and turn 2 is
a row of its own in which it alone bears loss.
"""

from typing import Any

import numpy as np

from spec.conversations import token_ids
from spec.errors import BadInput
from spec.samples.tokens import REASONING, TEXT, TOOL_CALLS, Encode, Sample

Conversation = dict[str, Any]


def samples_of(conversations: list[Conversation], encode: Encode) -> list[list[Sample]]:
    """The rows of each conversation; all must be exact (`shards.is_exact`).

    `encode` is asked only where an answer is both text and tool calls. Raises `BadInput`, naming the conversation,
    where its tokens are not those that were counted.
    """
    texts = [turn[name] for row in conversations for turn in row["turns"] for name in ("prompt_ids", "response_ids")]
    ids = token_ids.decode("".join(texts))  # at once: a call of NumPy costs as much as a hundred tokens
    pieces = iter(np.split(ids, np.cumsum([len(text) // token_ids.WIDTH for text in texts])[:-1]))
    return [_rows(row, pieces, encode) for row in conversations]


def _rows(row: Conversation, pieces: Any, encode: Encode) -> list[Sample]:
    rows: list[tuple[list[np.ndarray], list[np.ndarray]]] = []  # ids and loss of each, in pieces
    length = 0  # of the last row so far
    for number, (turn, place) in enumerate(zip(row["turns"], _places(row), strict=True), start=1):
        prompt, response, shared = next(pieces), next(pieces), turn["shared"]
        if (
            shared + len(prompt) != turn["prompt_tokens"]
            or len(response) != turn["completion_tokens"]
            or shared > length
        ):
            raise BadInput(
                f"row {row['id']}, answer {number}: not the tokens that were counted; filter the shard again"
            )
        if shared < length or not rows:
            before = np.concatenate(rows[-1][0])[:shared] if shared else prompt[:0]
            rows.append(([before], [np.zeros(shared, np.uint8)]))
            length = shared
        rows[-1][0].extend((prompt, response))
        rows[-1][1].extend((np.zeros(len(prompt), np.uint8), _kinds(turn, row["messages"][place], encode)))
        length += len(prompt) + len(response)
    return [Sample(np.concatenate(ids), np.concatenate(loss)) for ids, loss in rows]


def first_asked(row: Conversation) -> list[dict[str, Any]]:
    """The messages that the first answer of the row answers."""
    return row["messages"][: _places(row)[0]]


def _places(row: Conversation) -> list[int]:
    """Where in its messages the target's own answers stand: those before them are the dataset's."""
    places = [place for place, message in enumerate(row["messages"]) if message["role"] == "assistant"]
    return places[-len(row["turns"]) :]


def _kinds(turn: dict[str, Any], answer: dict[str, Any], encode: Encode) -> np.ndarray:
    """`[T]` uint8, what each token of an answer is: its reasoning first, then its text, then its calls.

    Where the reasoning ends is what the server counted. Where text comes before calls, its length is that of the text
    tokenised by itself. The marks between two belong to the latter.
    """
    kinds = np.full(turn["completion_tokens"], TEXT, np.uint8)
    reasoning, content = answer.get("reasoning_content"), answer.get("content")
    thought = min(turn.get("reasoning_tokens") or (len(encode(reasoning)) if reasoning else 0), len(kinds))
    if answer.get("tool_calls"):
        kinds[thought + (len(encode(content)) if content else 0) :] = TOOL_CALLS
    kinds[:thought] = REASONING
    return kinds

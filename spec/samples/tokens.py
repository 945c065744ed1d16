"""Token ids and loss mask of rendered rows, in one tokenisation pass, checked against what the server counted.

The server reports for each answer how many tokens its prompt and the answer had. Both must come out here too: another
tokenizer, another template or an answer that reads back as other tokens would train the draft on what the target
never saw, and nothing later would show it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from spec.conversations.rows import Reject
from spec.errors import BadInput
from spec.samples.offsets import Encoded, Encoder
from spec.samples.template import RETOKENISED, Answer, Row

Turn = dict[str, Any]  # {"prompt_tokens", "completion_tokens", "finish_reason"}, as the server counted
Encode = Callable[[str], list[int]]

# What a token that bears loss is; 0 bears none.
RENDERED, TEXT, REASONING, TOOL_CALLS = 1, 2, 3, 4  # rendered by the chat template: nobody says which of the others
KINDS = ("rendered", "text", "reasoning", "tool_calls")


class Sample(NamedTuple):
    input_ids: np.ndarray  # [T] int32
    loss: np.ndarray  # [T] uint8, not 0 where the target wrote this token, the token that ended it included


class Tokens:
    """Turns rendered rows into samples."""

    def __init__(self, tokenizer: Any):
        self._encoder = Encoder(tokenizer)
        added = {token for token, its in tokenizer.added_tokens_decoder.items() if its.special}
        self._special = added | set(tokenizer.all_special_ids)

    def encode(self, text: str) -> list[int]:
        return self._encoder.encode(text)

    def special_in(self, input_ids: np.ndarray) -> set[int]:
        """The special tokens among `[total]` ids. By counting all: sorting them takes as long as masking them."""
        counts = np.bincount(input_ids, minlength=max(self._special, default=0) + 1)
        return {token for token in self._special if counts[token]}

    def encode_rows(self, rows: list[Row]) -> list[Encoded]:
        return self._encoder.encode_all([row.text for row in rows])

    def sample(self, row: Row, encoded: Encoded, turns: list[Turn]) -> Sample:
        """The ids and the mask of a row that is encoded; `turns` are all of the conversation's.

        Raises `BadInput` where a prompt has another number of tokens than the server counted, `Reject` where an answer
        does not read back as the tokens that the server wrote.
        """
        mask = np.zeros(len(encoded.ids), dtype=np.uint8)  # [T]
        for answer in row.answers:
            end = self._end(row, answer, encoded, turns[answer.turn])
            for start, stop in answer.bears:
                mask[_token_at(encoded, start, answer) : min(_token_at(encoded, stop, answer), end)] = RENDERED
            if answer.bears:
                mask[end - 1] = RENDERED  # a template's own marks may leave the end-of-turn token out
        return Sample(encoded.ids, mask)

    def _end(self, row: Row, answer: Answer, encoded: Encoded, turn: Turn) -> int:
        """Where the tokens that the server wrote for an answer end, once they are found to be as many here."""
        prompt, completion = turn["prompt_tokens"], turn["completion_tokens"]
        start = encoded.token_at(answer.start)
        if start != prompt and (alone := len(self.encode(row.text[: answer.start]))) != prompt:
            raise BadInput(
                f"answer {answer.turn + 1}: its prompt has {alone} tokens here and had {prompt} at the server: another "
                f"tokenizer or chat template; give --tokenizer the directory of the model that answered"
            )
        if start != prompt:
            raise _misfit(answer, "its first characters and the prompt's last are one token")
        stop = _token_at(encoded, answer.end, answer)
        closing = next((at for at in range(stop - 1, prompt - 1, -1) if encoded.ids[at] in self._special), stop)
        end = min(closing + (turn["finish_reason"] != "length"), stop)  # cut off at its limit, it has no end of turn
        if end - prompt != completion:
            raise _misfit(answer, f"{end - prompt} tokens here, {completion} at the server")
        return end


def _token_at(encoded: Encoded, character: int, answer: Answer) -> int:
    token = encoded.token_at(character)
    if token is None:
        raise _misfit(answer, "one token holds a part of it and what is beside it")
    return token


def _misfit(answer: Answer, why: str) -> Reject:
    return Reject(RETOKENISED, f"answer {answer.turn + 1} does not read back as the server wrote it: {why}")

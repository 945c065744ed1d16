"""Rows of the server's own tokens, against a plain reading of what was asked and answered."""

import random

import numpy as np
import pytest

from spec.conversations.regenerate import Question, answer_row
from spec.conversations.rows import Said
from spec.conversations.server import Answer
from spec.errors import BadInput
from spec.samples.convert import HELD_OUT, TOO_LONG, TRAIN, Converter, Limits
from spec.samples.exact import samples_of
from spec.samples.tokens import REASONING, TEXT, TOOL_CALLS
from tests import chat_tokenizers

LIMITS = Limits(max_length=4096, truncate=False, held_out_below=0)


def ids(*tokens):
    return np.array(tokens, np.int32)


async def row_of(exchanges, name="a" * 32 + "-0"):
    """The answer row of one conversation; `exchanges` are what the server said: (prompt ids, response ids, message)."""
    replies = iter(exchanges)

    async def chat(_):
        prompt, response, message = next(replies)
        return Answer(
            {"role": "assistant", "content": "said", **message}, "stop", len(prompt), len(response), 0, prompt, response
        )

    said = [Said(role, "x") for _ in exchanges for role in ("user", "assistant")]
    return await answer_row(Question(name, said), chat)


def no_encoding(text):
    raise AssertionError("no tokenizer is needed")


def plainly(exchanges):
    """Token by token: an exchange goes on in the row before only where that is the beginning of its prompt."""
    rows = []
    for prompt, response, _ in exchanges:
        prompt, response = prompt.tolist(), response.tolist()
        if rows and prompt[: len(rows[-1][0])] == rows[-1][0]:
            before, loss = rows.pop()
        else:
            before, loss = [], []
        new = prompt[len(before) :]
        rows.append((before + new + response, loss + [0] * len(new) + [1] * len(response)))
    return rows


def made_up(rng):
    """Exchanges of which some continue, some share a part of what was before, and some share nothing."""
    exchanges, before = [], []
    for _ in range(rng.randint(1, 5)):
        keep = rng.choice([len(before), rng.randint(0, len(before)), 0])
        prompt = ids(*before[:keep], *(rng.randrange(200_000) for _ in range(rng.randint(1, 30))))
        response = ids(*(rng.randrange(200_000) for _ in range(rng.randint(1, 30))))
        exchanges.append((prompt, response, {}))
        before = [*prompt.tolist(), *response.tolist()]
    return exchanges


async def test_rows_equal_a_plain_reading_of_random_exchanges():
    rng = random.Random(0)
    all_exchanges = [made_up(rng) for _ in range(200)]
    rows = [await row_of(exchanges) for exchanges in all_exchanges]
    several = 0
    for exchanges, samples in zip(all_exchanges, samples_of(rows, no_encoding), strict=True):
        found = [(sample.input_ids.tolist(), (sample.loss > 0).astype(int).tolist()) for sample in samples]
        assert found == plainly(exchanges)
        several += len(found) > 1
    assert 20 < several < 180


async def test_what_a_later_turn_repeats_is_stored_once():
    first, answer = ids(1, 2, 3), ids(4, 5)
    row = await row_of([(first, answer, {}), (ids(1, 2, 3, 4, 5, 6), ids(7), {})])
    assert [len(turn["prompt_ids"]) // 3 for turn in row["turns"]] == [3, 1]
    assert [turn["shared"] for turn in row["turns"]] == [0, 5]


async def test_tokens_other_than_those_counted_are_refused():
    row = await row_of([(ids(1, 2, 3), ids(4, 5), {})])
    row["turns"][0]["completion_tokens"] = 3
    with pytest.raises(BadInput, match=f"row {row['id']}, answer 1: not the tokens that were counted"):
        samples_of([row], no_encoding)


@pytest.mark.parametrize(
    ("message", "reasoning_tokens", "kinds"),
    [
        ({}, 0, [TEXT] * 6),
        ({"reasoning_content": "hm"}, 4, [REASONING] * 4 + [TEXT] * 2),
        ({"reasoning_content": "hm"}, 0, [REASONING] * 2 + [TEXT] * 4),  # a server that does not count it
        ({"reasoning_content": "hm", "content": ""}, 6, [REASONING] * 6),
        ({"content": "", "tool_calls": [{}]}, 0, [TOOL_CALLS] * 6),
        ({"content": "ab", "tool_calls": [{}]}, 0, [TEXT] * 2 + [TOOL_CALLS] * 4),
        (
            {"reasoning_content": "h", "content": "ab", "tool_calls": [{}]},
            1,
            [REASONING] + [TEXT] * 2 + [TOOL_CALLS] * 3,
        ),
    ],
)
async def test_what_the_loss_is_of(message, reasoning_tokens, kinds):
    row = await row_of([(ids(1, 2), ids(3, 4, 5, 6, 7, 8), message)])
    if reasoning_tokens:
        row["turns"][0]["reasoning_tokens"] = reasoning_tokens
    ((sample,),) = samples_of([row], lambda text: list(text.encode()))
    assert sample.loss.tolist() == [0, 0, *kinds]


class TestConverter:
    async def convert(self, exchanges, limits=LIMITS):
        tokenizer = chat_tokenizers.qwen3()
        tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)  # without any template
        return Converter(tokenizer, [], limits)([await row_of(exchanges)])

    async def test_no_template_is_needed_and_the_ids_need_not_read_back(self):
        """The text "said" is nothing that these ids say, and the tokenizer has no template."""
        converted = await self.convert([(ids(5, 6), ids(7, 8), {})])
        assert converted.counts == {TRAIN: 1} and converted.exact == 1
        assert converted.rows[TRAIN].input_ids.tolist() == [5, 6, 7, 8]
        assert converted.rows[TRAIN].loss_mask.tolist() == [0, 0, 1, 1]
        assert converted.kinds[TRAIN].tolist() == [0, 2, 0, 0]

    async def test_the_held_out_prompt_is_what_the_server_was_given(self):
        exchanges = [(ids(5, 6), ids(7, 8), {}), (ids(5, 6, 7, 8, 9), ids(3), {})]
        converted = await self.convert(exchanges, Limits(4096, False, 2**64))
        assert converted.counts == {HELD_OUT: 1}
        (prompt,) = converted.prompts
        assert prompt["input_ids"] == [5, 6] and [message["role"] for message in prompt["messages"]] == ["user"]

    async def test_limits_hold_here_too(self):
        exchanges = [(ids(*range(20)), ids(*range(20)), {})]
        assert (await self.convert(exchanges, Limits(39, False, 0))).counts == {TOO_LONG: 1}
        cut = await self.convert(exchanges, Limits(39, True, 0))
        assert cut.rows[TRAIN].lengths.tolist() == [39] and cut.kinds[TRAIN].sum() == 19

    async def test_a_rows_id_is_its_conversations_and_its_place(self):
        separate = [(ids(1), ids(2), {}), (ids(3), ids(4), {})]
        first, again = await self.convert(separate), await self.convert(separate, Limits(100, True, 0))
        assert first.rows[TRAIN].ids.tolist() == again.rows[TRAIN].ids.tolist()
        assert len(set(first.rows[TRAIN].ids.tolist())) == 2

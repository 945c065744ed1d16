"""A chat template that writes the date: text answers are rendered with the day on which the server gave them."""

from datetime import date

import numpy as np
import pytest

from spec.conversations.regenerate import Question, answer_row
from spec.conversations.rows import Said
from spec.conversations.server import Answer
from spec.errors import BadInput
from spec.samples.convert import HELD_OUT, TRAIN, Converter, Limits
from tests.answered import answered, chat
from tests.tiny_models import tiny_tokenizer

CHAT, WRITTEN = chat("Hi", "Hello."), ["Hello.<|im_end|>"]


@pytest.fixture
def tokenizer():
    tokenizer = tiny_tokenizer()
    clock = "{% if today is not defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}{{ today }}|"
    tokenizer.chat_template = clock + tokenizer.chat_template
    return tokenizer


def converted(tokenizer, conversation, held_out_below=0, **settings):
    return Converter(tokenizer, [settings], Limits(4096, False, held_out_below))([conversation])


def test_samples_and_held_out_prompts_carry_the_day_of_the_answer(tokenizer):
    conversation = answered(tokenizer, CHAT, WRITTEN) | {"day": "2024-02-29"}
    done = converted(tokenizer, conversation)
    assert tokenizer.decode(done.rows[TRAIN].input_ids).startswith("29 Feb 2024|")
    done = converted(tokenizer, conversation, held_out_below=2**64)
    assert tokenizer.decode(done.prompts[0]["input_ids"]).startswith("29 Feb 2024|")
    assert tokenizer.decode(done.rows[HELD_OUT].input_ids).startswith("29 Feb 2024|")


def test_answers_that_do_not_tell_their_day_are_refused_where_the_template_reads_the_clock(tokenizer):
    conversation = answered(tokenizer, CHAT, WRITTEN)
    with pytest.raises(BadInput, match="writes today's date.*filter again"):
        converted(tokenizer, conversation)
    given = answered(tokenizer, CHAT, WRITTEN, today="Tuesday")
    assert converted(tokenizer, given, today="Tuesday").counts == {"train": 1}


@pytest.mark.parametrize("ids", [None, np.arange(7)])
async def test_answers_of_text_tell_their_day_and_exact_ones_need_none(ids):
    async def chat(messages):
        return Answer({"role": "assistant", "content": "Hello."}, "stop", 7, 7, prompt_ids=ids, response_ids=ids)

    row = await answer_row(Question("id", [Said("user", "Hi")]), chat)
    assert row.get("day") == (date.today().isoformat() if ids is None else None)

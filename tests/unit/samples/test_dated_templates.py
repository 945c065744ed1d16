"""A chat template that writes the date: text answers are rendered with the day on which the server gave them."""

import time
from datetime import date

import numpy as np
import pytest

from spec.conversations.day import days_of
from spec.conversations.regenerate import Question, answer_row
from spec.conversations.rows import Said
from spec.conversations.server import Answer, Sampling, Server
from spec.errors import BadInput
from spec.samples.convert import HELD_OUT, TRAIN, Converter, Limits
from spec.samples.template import DAY_UNKNOWN
from tests.answered import answered, chat
from tests.stub_server import Reply, StubServer
from tests.tiny_models import tiny_tokenizer

CHAT, WRITTEN = chat("Hi", "Hello."), ["Hello.<|im_end|>"]


@pytest.fixture
def tokenizer():
    tokenizer = tiny_tokenizer()
    clock = "{% if today is not defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}{{ today }}|"
    tokenizer.chat_template = clock + tokenizer.chat_template
    return tokenizer


def converted(tokenizer, conversation, held_out_below=0, *, trust_day=True, **settings):
    return Converter(tokenizer, [settings], Limits(4096, False, held_out_below, trust_day))([conversation])


def test_samples_and_held_out_prompts_carry_the_day_of_the_answer(tokenizer):
    conversation = answered(tokenizer, CHAT, WRITTEN) | {"day": "2024-02-29"}
    done = converted(tokenizer, conversation)
    assert tokenizer.decode(done.rows[TRAIN].input_ids).startswith("29 Feb 2024|")
    done = converted(tokenizer, conversation, held_out_below=2**64)
    assert tokenizer.decode(done.prompts[0]["input_ids"]).startswith("29 Feb 2024|")
    assert tokenizer.decode(done.rows[HELD_OUT].input_ids).startswith("29 Feb 2024|")


def test_a_template_that_reads_the_clock_is_refused_unless_the_day_is_trusted(tokenizer):
    """A server whose clock is wrong, or whose zone is another, may have written a day as long as this one."""
    conversation = answered(tokenizer, CHAT, WRITTEN) | {"day": "2024-02-29"}
    with pytest.raises(BadInput, match="reads the clock.*--trust-day.*here 2024-02-29"):
        converted(tokenizer, conversation, trust_day=False)
    given = answered(tokenizer, CHAT, WRITTEN, today="Tuesday") | {"day": "2024-02-29"}
    assert converted(tokenizer, given, trust_day=False, today="Tuesday").counts == {"train": 1}


def test_an_answer_near_midnight_is_counted(tokenizer):
    conversation = answered(tokenizer, CHAT, WRITTEN) | {"day": "2024-02-28 or 2024-02-29"}
    done = converted(tokenizer, conversation)
    assert done.counts == {DAY_UNKNOWN: 1} and "2024-02-28 or 2024-02-29" in done.why[DAY_UNKNOWN]


def test_a_day_of_another_length_is_named_as_what_may_be_wrong(tokenizer):
    conversation = answered(tokenizer, CHAT, WRITTEN) | {"day": "2024-02-29"}
    conversation["turns"][0]["prompt_tokens"] -= 1
    with pytest.raises(
        BadInput, match="another tokenizer or chat template.*or its template wrote another day than 2024"
    ):
        converted(tokenizer, conversation)


def test_answers_that_do_not_tell_their_day_are_refused_where_the_template_reads_the_clock(tokenizer):
    conversation = answered(tokenizer, CHAT, WRITTEN)
    with pytest.raises(BadInput, match="writes today's date.*filter again"):
        converted(tokenizer, conversation)
    given = answered(tokenizer, CHAT, WRITTEN, today="Tuesday")
    assert converted(tokenizer, given, today="Tuesday").counts == {"train": 1}


@pytest.fixture
def in_tokyo(monkeypatch):
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("told", "seconds", "days"),
    [
        ("Thu, 29 Feb 2024 10:00:00 GMT", 5, "2024-02-29"),
        ("Thu, 29 Feb 2024 00:00:10 GMT", 60, "2024-02-28 or 2024-02-29"),  # asked before midnight
        ("Thu, 29 Feb 2024 16:00:00 GMT", 5, "2024-02-29 or 2024-03-01"),  # the first of March in Tokyo
        (None, 5, None),
        ("yesterday", 5, None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 5, None),
    ],
)
def test_the_day_is_the_servers_in_utc_and_the_zone_here(told, seconds, days, in_tokyo):
    found = " or ".join(sorted(days_of(told, seconds)))
    assert found == days if days else date.today().isoformat() in found


@pytest.mark.parametrize("ids", [None, np.arange(7)])
async def test_answers_of_text_tell_their_days_and_exact_ones_need_none(ids):
    days = iter([{"2024-02-29"}, {"2024-02-29", "2024-03-01"}])

    async def chat(messages):
        counted = {"prompt_ids": ids, "response_ids": ids, "days": frozenset(next(days))}
        return Answer({"role": "assistant", "content": "Hello."}, "stop", 7, 7, **counted)

    asked = [Said("user", "Hi"), Said("assistant", "."), Said("user", "Ho")]
    row = await answer_row(Question("id", asked), chat)
    assert row.get("day") == ("2024-02-29 or 2024-03-01" if ids is None else None)


async def test_the_day_is_the_one_that_the_server_tells():
    with StubServer(behave=lambda body: Reply(headers={"Date": "Thu, 29 Feb 2024 10:00:00 GMT"})) as stub:
        async with Server(stub.url, Sampling()) as server:
            await server.connect()
            row = await answer_row(Question("id", [Said("user", "Hi")]), server.chat)
    assert row["day"] == "2024-02-29"

import asyncio
import gc
import itertools
import random
import threading

import pytest

from spec.conversations.regenerate import Question, answer_all, answer_row
from spec.conversations.rows import Reject, Said
from spec.conversations.server import Answer
from spec.errors import BadInput

TWO_TURNS = [
    Said("system", "be brief"),
    Said("user", "first"),
    Said("assistant", "THEIRS"),
    Said("user", "second"),
    Said("assistant", "THEIRS"),
]


def answer(text, finish_reason="stop"):
    return Answer({"role": "assistant", "content": text}, finish_reason, 7, 3)


class Collector:
    """In place of `Results`."""

    def __init__(self):
        self.rows = []

    def add(self, row):
        self.rows.append(row)


async def test_each_turn_is_asked_with_the_regenerated_answers_as_history():
    asked = []

    async def chat(messages):
        asked.append([dict(message) for message in messages])
        return answer(f"ours {len(asked)}")

    row = await answer_row(Question("id", TWO_TURNS), chat)
    assert asked == [row["messages"][:2], row["messages"][:4]]
    assert [message["content"] for message in row["messages"]] == ["be brief", "first", "ours 1", "second", "ours 2"]
    assert row["turns"] == [{"prompt_tokens": 7, "completion_tokens": 3, "finish_reason": "stop"}] * 2
    assert "THEIRS" not in str(asked) + str(row)


@pytest.mark.parametrize(
    ("second", "bucket"),
    [
        (answer("cut o", "length"), "truncated"),
        (answer(" \n"), "empty"),
        (answer("", "content_filter"), "refused_by_server"),
        (Reject("too_long", "9000 tokens"), "too_long"),
    ],
)
async def test_a_row_with_any_turn_unanswered_is_rejected_by_name(second, bucket):
    replies = iter([answer("fine"), second])

    async def chat(messages):
        reply = next(replies)
        if isinstance(reply, Reject):
            raise reply
        return reply

    row = await answer_row(Question("id", TWO_TURNS), chat)
    assert row["id"] == "id" and row["reject"] == bucket
    assert row["detail"].startswith("answer 2: ")
    assert "messages" not in row


@pytest.mark.parametrize(
    "message",
    [
        {"content": "", "reasoning_content": "two and two"},
        {
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
        },
    ],
)
async def test_reasoning_or_calls_alone_are_an_answer(message):
    async def chat(messages):
        return Answer({"role": "assistant", **message}, "tool_calls" if "tool_calls" in message else "stop", 7, 3)

    row = await answer_row(Question("id", TWO_TURNS[:2]), chat)
    assert row["messages"][-1] == {"role": "assistant", **message}


async def test_a_row_without_a_prompt_is_not_asked():
    async def chat(messages):
        raise AssertionError

    assert (await answer_row(Question("id", []), chat))["reject"] == "no_prompt"


async def test_every_question_is_answered_once_whatever_the_order():
    async def chat(messages):
        await asyncio.sleep(random.Random(messages[-1]["content"]).random() / 100)
        return answer(f"to {messages[-1]['content']}")

    results = Collector()
    questions = (Question(str(number), [Said("user", str(number))]) for number in range(500))
    await answer_all(questions, chat, results, parallel=32)
    assert sorted(int(row["id"]) for row in results.rows) == list(range(500))
    assert [row["id"] for row in results.rows] != [str(number) for number in range(500)]
    assert all(row["messages"][-1]["content"] == f"to {row['id']}" for row in results.rows)


async def test_no_more_of_an_endless_source_is_read_than_there_is_room_for():
    read = []
    stop = asyncio.Event()

    def endless():
        for number in itertools.count():
            read.append(number)
            yield Question(str(number), [Said("user", "?")])

    async def chat(messages):
        await stop.wait()
        return answer("late")

    task = asyncio.create_task(answer_all(endless(), chat, Collector(), parallel=4))
    await asyncio.sleep(0.3)
    assert len(read) <= 4 + 4 + 1  # with the workers, in the queue, and at its door
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_source_ends_the_whole():
    def broken():
        yield Question("0", [Said("user", "?")])
        raise BadInput("row 2 is no row")

    async def chat(messages):
        return answer("fine")

    results = Collector()
    with pytest.raises((ExceptionGroup, BadInput)) as caught:
        await answer_all(broken(), chat, results, parallel=2)
    assert "row 2 is no row" in repr(caught.value)


@pytest.mark.parametrize("reading", [False, True], ids=["waiting for room", "in the middle of a read"])
def test_a_reader_that_outlives_the_work_ends_without_a_word(reading, recwarn):
    """The first error ends the work, and its loop, while the reader still has rows to hand over."""
    ended, readers = threading.Event(), []

    def questions():
        readers.append(threading.current_thread())
        for number in itertools.count():
            if reading and number:
                ended.wait()
            yield Question(str(number), [Said("user", "?")])

    async def chat(messages):
        raise BadInput("no such model")

    with pytest.raises(ExceptionGroup):
        asyncio.run(answer_all(questions(), chat, Collector(), parallel=1))
    ended.set()
    readers[0].join(5)
    assert not readers[0].is_alive()
    gc.collect()  # what was left unawaited speaks up when it goes
    assert [str(warning.message) for warning in recwarn] == []


async def test_the_source_is_read_in_a_thread_of_its_own():
    readers = set()

    def questions():
        for number in range(3):
            readers.add(threading.current_thread())
            yield Question(str(number), [Said("user", "?")])

    async def chat(messages):
        return answer("fine")

    await answer_all(questions(), chat, Collector(), parallel=2)
    assert readers and threading.main_thread() not in readers


async def test_a_truncated_answer_is_kept_on_demand_and_ends_its_row():
    asked = []

    async def chat(messages):
        asked.append(messages[-1]["content"])
        return answer("cut o", "length")

    row = await answer_row(Question("id", TWO_TURNS), chat, keep_truncated=True)
    assert asked == ["first"]
    assert [message["content"] for message in row["messages"]] == ["be brief", "first", "cut o"]
    assert [turn["finish_reason"] for turn in row["turns"]] == ["length"]

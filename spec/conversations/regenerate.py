"""The target's answers in place of the dataset's: turn by turn within a row, many rows at once.

A reader thread, a queue that holds a few rows, and `parallel` workers that take one row each: as many requests are in
flight as there are workers until the source ends, and memory does not grow with the source.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from spec.conversations import token_ids
from spec.conversations.answer import Answer
from spec.conversations.day import OR
from spec.conversations.results import Results
from spec.conversations.rows import Message, Reject, Said, turns_to_answer
from spec.conversations.shards import is_exact
from spec.conversations.tools import Exchange

Chat = Callable[..., Awaitable[Answer]]  # chat(messages), with `variant`, `sample` and `tools` where there are any


class Question(NamedTuple):
    """A source row, or one answer in a row with tools, that is still to be asked for."""

    id: str
    conversation: list[Said] | Exchange | Reject  # or why there can be no answer
    variant: int | None = None  # of the template's settings, where several are asked for
    sample: int = 0  # of the answers to one prompt


async def answer_all(
    questions: Iterator[Question], chat: Chat, results: Results, *, parallel: int, keep_truncated: bool = False
) -> None:
    """Answer every question, `parallel` at a time, in whatever order they finish.

    `questions` is read in a thread of its own. The first error of any part ends the whole (as an `ExceptionGroup`).
    """
    queue: asyncio.Queue[Question | None] = asyncio.Queue()
    room = threading.Semaphore(parallel)  # what bounds the queue

    async def work() -> None:
        while (question := await queue.get()) is not None:
            room.release()
            results.add(await answer_row(question, chat, keep_truncated=keep_truncated))

    async with asyncio.TaskGroup() as workers:
        for _ in range(parallel):
            workers.create_task(work())
        await _read_into(queue, room, questions)
        for _ in range(parallel):
            queue.put_nowait(None)


async def answer_row(question: Question, chat: Chat, *, keep_truncated: bool = False) -> dict[str, Any]:
    """The row's one line: `{"id", "messages", "turns"}` or `{"id", "reject", "detail"}`; see `_turn` for the turns.

    Answers of text alone have their `day` too, by the server's clock, which a chat template may write and preparing
    cannot know; near midnight it is two, "2026-11-29 or 2026-11-30".

    Each turn's history holds the answers that `chat` gave to the turns before. A row with any turn unanswered is
    rejected as a whole; so is one with an answer cut off at its limit, unless `keep_truncated`, with which the row ends
    there. An exchange with tools has the dataset's history and one turn, the last; its line holds its `tools` too.
    """
    messages: list[Message] = []
    turns: list[dict[str, Any]] = []
    days: set[str] = set()
    before: Answer | None = None
    asked = question.conversation if isinstance(question.conversation, Exchange) else None
    tools = asked.tools if asked else []
    own = asked.sampling if asked else None
    settings = {"variant": question.variant, "sample": question.sample, "tools": tools, "own": own}
    which = {name: value for name, value in settings.items() if value}
    try:
        for turn in _turns(question.conversation):
            messages += turn
            answer = await chat(messages, **which)
            _check(answer, keep_truncated, with_tools=bool(tools))
            if answer.response_ids is None and any(message["role"] == "assistant" for message in turn):
                raise Reject("no_token_ids", "an answer after those of another, and a server that gives no token ids")
            messages.append(answer.message)
            turns.append(_turn(answer, before))
            days |= answer.days
            before = answer
            if answer.finish_reason == "length":
                break  # no later turn was ever asked after half an answer
    except Reject as reject:
        detail = f"answer {len(turns) + 1}: {reject.detail}" if turns else reject.detail
        return {"id": question.id, "reject": reject.bucket, "detail": detail}
    row: dict[str, Any] = {"id": question.id, "messages": messages, "turns": turns}
    row |= {"tools": tools} if tools else {}
    row |= {} if question.variant is None else {"variant": question.variant}
    return row if is_exact(row) or not days else row | {"day": OR.join(sorted(days))}


def _turns(conversation: list[Said] | Exchange | Reject) -> list[list[Message]]:
    if isinstance(conversation, Reject):
        raise conversation
    return [conversation.history] if isinstance(conversation, Exchange) else turns_to_answer(conversation)


def _turn(answer: Answer, before: Answer | None) -> dict[str, Any]:
    """What a row keeps of an answer: its tokens, where the server gives them, and how many there were.

    Of the prompt only the tokens from the first on that the turn before did not have: `shared` of them it did, in its
    prompt and answer. Where these are all of the turn before, this turn continues it.
    """
    turn: dict[str, Any] = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "finish_reason": answer.finish_reason,
    }
    if answer.reasoning_tokens:
        turn["reasoning_tokens"] = answer.reasoning_tokens
    if answer.prompt_ids is None or answer.response_ids is None:
        return turn
    shared = 0
    if before is not None and before.prompt_ids is not None and before.response_ids is not None:
        shared = token_ids.shared_prefix(np.concatenate([before.prompt_ids, before.response_ids]), answer.prompt_ids)
    return turn | {
        "shared": shared,
        "prompt_ids": token_ids.encode(answer.prompt_ids[shared:]),
        "response_ids": token_ids.encode(answer.response_ids),
    }


def _check(answer: Answer, keep_truncated: bool, *, with_tools: bool) -> None:
    if answer.finish_reason == "length" and not keep_truncated:
        raise Reject("truncated", f"cut off after {answer.completion_tokens} tokens")
    if answer.finish_reason not in ("stop", "length", "tool_calls"):
        raise Reject("refused_by_server", f"finish_reason {answer.finish_reason}")
    said = answer.message
    if with_tools and answer.completion_tokens > 1:
        return  # a parser takes a call out of the text, and drops it where it is not whole: its tokens are the answer
    if not (said["content"].strip() or said.get("reasoning_content") or said.get("tool_calls")):
        raise Reject("empty", f"{answer.completion_tokens} tokens and no text")


async def _read_into(
    queue: asyncio.Queue[Question | None], room: threading.Semaphore, questions: Iterator[Question]
) -> None:
    """Drain `questions` into `queue` from a daemon thread: a read that hangs must not keep the process from ending.

    The thread hands over plain calls, never a coroutine: a loop that has ended meanwhile would leave that unawaited.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(None)

    def read() -> None:
        failure: BaseException | None = None
        try:
            for question in questions:
                room.acquire()
                if done.done():  # nobody waits for more
                    return
                loop.call_soon_threadsafe(queue.put_nowait, question)
        except BaseException as error:  # the other thread's business, whatever it is
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody wants to know
            loop.call_soon_threadsafe(finish, failure)

    threading.Thread(target=read, name="reader", daemon=True).start()
    try:
        await done
    finally:
        room.release()  # a reader that waits for room ends too

"""For each family: conversations, and by hand the exact text that bears loss in each of their training rows."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from spec.samples.convert import TRAIN, Converter, Limits
from tests import chat_tokenizers
from tests.answered import answered, chat

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL_CALL = [
    {"role": "user", "content": "Is it warm in Paris?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "21 degrees"},
    {"role": "assistant", "content": "It is 21 degrees."},
]
THOUGHT = [
    {"role": "user", "content": "Capital of France?"},
    {"role": "assistant", "content": "Paris.", "reasoning_content": "France... Paris!"},
]
TWO_THOUGHTS = [
    *THOUGHT,
    {"role": "user", "content": "Of Italy?"},
    {"role": "assistant", "content": "Rome.", "reasoning_content": "Italy... Rome!"},
]
OFF = {"enable_thinking": False}


class Case(NamedTuple):
    what: str
    family: str
    messages: list[dict[str, Any]]
    loss: list[list[str]]  # for each training row, the stretches of text that bear loss
    written: list[str] | None = None  # what the model wrote in each turn, where that is more than what bears loss
    template: dict[str, Any] = {}


CASES = [
    Case("one turn", "llama3", chat("Hi", "Hello there."), [["Hello there.<|eot_id|>"]]),
    Case(
        "several turns",
        "llama3",
        chat("Hi", "Hello.", "And you?", "Fine, thanks!\n\nYou?"),
        [["Hello.<|eot_id|>", "Fine, thanks!\n\nYou?<|eot_id|>"]],
    ),
    Case("system prompt", "llama3", chat("Hi", "Arr!", system="You are a pirate."), [["Arr!<|eot_id|>"]]),
    Case("other letters", "llama3", chat("语?", "«naïve» 語 🙂🦙 e\u0301"), [["«naïve» 語 🙂🦙 e\u0301<|eot_id|>"]]),
    Case(
        "tool call",
        "llama3",
        TOOL_CALL,
        [['{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>', "It is 21 degrees.<|eot_id|>"]],
    ),
    Case("the user quotes the assistant", "llama3", chat("Say Hello.", "Hello."), [["Hello.<|eot_id|>"]]),
    Case("one turn", "llama4", chat("Hi", "Hello there."), [["Hello there.<|eot|>"]]),
    Case(
        "several turns",
        "llama4",
        chat("Hi", "Hello.", "And you?", " Fine.\n"),
        [["Hello.<|eot|>", " Fine.\n<|eot|>"]],
    ),
    Case("system prompt", "llama4", chat("Hi", "Arr!", system="You are a pirate."), [["Arr!<|eot|>"]]),
    Case(
        "tool call",
        "llama4",
        TOOL_CALL,
        [
            [
                '<|python_start|><|python_end|>{"name": "weather", "parameters": {"city": "Paris"}}<|eot|>',
                "It is 21 degrees.<|eot|>",
            ]
        ],
    ),
    Case(
        "letters in two parts, which the tokenizer joins",
        "qwen3",
        chat("Hi", "e\u0301t e\u0301"),
        [["ét é<|im_end|>"]],
        None,
        OFF,
    ),
    Case(
        "thinking off",
        "qwen3",
        chat("Capital of France?", "Paris."),
        [["Paris.<|im_end|>"]],
        template=OFF,
    ),
    Case(
        "thinking off, several turns: the template takes the empty block out of the first, so one row for each",
        "qwen3",
        chat("Capital of France?", "Paris.", "Of Italy?", "Rome."),
        [["Paris.<|im_end|>"], ["Rome.<|im_end|>"]],
        template=OFF,
    ),
    Case(
        "thinking on",
        "qwen3",
        THOUGHT,
        [["<think>\nFrance... Paris!\n</think>\n\nParis.<|im_end|>"]],
    ),
    Case(
        "thinking on, the server leaves the reasoning in the content",
        "qwen3",
        chat("Capital of France?", "<think>\nFrance... Paris!\n</think>\n\nParis."),
        [["<think>\nFrance... Paris!\n</think>\n\nParis.<|im_end|>"]],
    ),
    Case(
        "thinking on, several turns: earlier reasoning is not in later prompts, so one row for each",
        "qwen3",
        TWO_THOUGHTS,
        [
            ["<think>\nFrance... Paris!\n</think>\n\nParis.<|im_end|>"],
            ["<think>\nItaly... Rome!\n</think>\n\nRome.<|im_end|>"],
        ],
    ),
    Case(
        "thinking on, an empty thought",
        "qwen3",
        chat("Capital of France? /no_think", "Paris."),
        [["Paris.<|im_end|>"]],
        written=["<think>\n\n</think>\n\nParis.<|im_end|>"],
    ),
    Case(
        "system prompt",
        "qwen3",
        chat("Hi", "Arr!", system="You are a pirate."),
        [["Arr!<|im_end|>"]],
        template=OFF,
    ),
    Case(
        "tool call within one question: its reasoning stays, so one row",
        "qwen3",
        [
            TOOL_CALL[0],
            {**TOOL_CALL[1], "reasoning_content": "I must ask."},
            TOOL_CALL[2],
            {**TOOL_CALL[3], "reasoning_content": "Now I know."},
        ],
        [
            [
                '<think>\nI must ask.\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n'
                "</tool_call><|im_end|>",
                "<think>\nNow I know.\n</think>\n\nIt is 21 degrees.<|im_end|>",
            ]
        ],
    ),
    Case(
        "a following question bears no loss",
        "qwen3",
        [*THOUGHT, {"role": "user", "content": "And?"}],
        [["<think>\nFrance... Paris!\n</think>\n\nParis.<|im_end|>"]],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}: {case.what}")
def test_what_the_model_wrote_bears_loss_and_nothing_else(case):
    tokenizer = getattr(chat_tokenizers, case.family)()
    written = case.written or [text for row in case.loss for text in row]
    conversation = answered(tokenizer, case.messages, written, **case.template)
    rows = convert(tokenizer, conversation, case.template)
    assert [loss_text(tokenizer, *row) for row in rows] == case.loss


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}: {case.what}")
def test_a_row_up_to_its_last_answer_is_what_the_server_was_given(case):
    """Each row begins with the very tokens of the server's prompt for the row's last answer."""
    tokenizer = getattr(chat_tokenizers, case.family)()
    written = case.written or [text for row in case.loss for text in row]
    conversation = answered(tokenizer, case.messages, written, **case.template)
    rows = convert(tokenizer, conversation, case.template)
    turns = [place for place, message in enumerate(case.messages) if message["role"] == "assistant"]
    for (ids, _), end in zip(rows, turns if len(rows) > 1 else turns[-1:], strict=True):
        prompt = tokenizer.apply_chat_template(
            case.messages[:end], add_generation_prompt=True, return_dict=False, **case.template
        )
        assert ids[: len(prompt)].tolist() == prompt


MARKED = {
    "header and newline inside the marks": "{% generation %}<|im_start|>assistant\n{{ message.content }}<|im_end|>\n"
    "{% endgeneration %}",
    "end of turn outside of the marks": "<|im_start|>assistant\n"
    "{% generation %}{{ message.content }}{% endgeneration %}<|im_end|>\n",
}


@pytest.mark.parametrize("answer", MARKED.values(), ids=MARKED.keys())
def test_a_template_that_marks_its_answers(answer):
    template = (
        "{% for message in messages %}{% if message.role == 'assistant' %}" + answer + "{% else %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = chat_tokenizers.qwen3(template)
    conversation = answered(tokenizer, chat("Hi", "Hello.", "So?", "Well."), ["Hello.<|im_end|>", "Well.<|im_end|>"])
    (row,) = convert(tokenizer, conversation)
    assert loss_text(tokenizer, *row) == ["Hello.<|im_end|>", "Well.<|im_end|>"]


def convert(tokenizer, conversation, template: dict[str, Any] | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    converted = Converter(tokenizer, [template or {}], Limits(2048, False, 0))([conversation])
    assert not converted.why
    ids, mask, lengths, _ = converted.rows[TRAIN]
    edges = np.cumsum(lengths)[:-1]
    return list(zip(np.split(ids, edges), np.split(mask, edges), strict=True))


def loss_text(tokenizer, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    """The stretches of a row that bear loss."""
    edges = np.flatnonzero(np.diff(mask, prepend=0, append=0))
    return [tokenizer.decode(ids[start:end]) for start, end in edges.reshape(-1, 2)]

"""An answer of the target as a chat completion gives it: in words, and in tokens where the server tells them."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from spec.conversations import token_ids
from spec.conversations.rows import Message
from spec.errors import BadInput


@dataclass(frozen=True)
class Answer:
    message: Message  # with "reasoning_content" and "tool_calls" where the server separates them; "content" may be ""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0  # of the completion's, where the server tells them apart
    prompt_ids: np.ndarray | None = None  # [prompt_tokens] int32; None where the server gives no ids
    response_ids: np.ndarray | None = None  # [completion_tokens] int32, the token that ended the answer included
    days: frozenset[str] = frozenset()  # on which the server may have been asked


def read_answer(body: bytes, url: str, days: frozenset[str] = frozenset()) -> Answer:
    """Raises `ValueError` for what is no chat completion, `BadInput` for one that does not tell of its tokens."""
    try:
        reply = json.loads(body)
        choice, usage = reply["choices"][0], reply.get("usage")
        said = choice["message"]
        calls = said.get("tool_calls")
        message = {"role": "assistant", "content": (said.get("content") if calls else said["content"]) or ""}
        if said.get("reasoning_content"):
            message["reasoning_content"] = said["reasoning_content"]
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        if usage is None and not choice.get("response_token_ids"):
            raise BadInput(
                f"{url} says neither how many tokens its answers have (`usage`) nor which (`response_token_ids`), so "
                f"nothing can be checked: serve the target with SGLang 0.5.23"
            )
        return Answer(message, choice["finish_reason"], **_counted(choice, usage, url), days=days)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("no chat completion") from error


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A call as a history holds it: less its place among others, and what is null."""
    function = {name: call["function"][name] for name in ("name", "arguments")}
    return {name: call[name] for name in ("id", "type") if call.get(name)} | {"function": function}


def _counted(choice: dict[str, Any], usage: dict[str, Any] | None, url: str) -> dict[str, Any]:
    """The counts of an answer and, where the choice has them, its ids; then these are what is counted."""
    ids = [choice.get("prompt_token_ids"), choice.get("response_token_ids")]
    reasoning = (usage or {}).get("reasoning_tokens") or 0
    if not all(ids):
        counts = usage or {}
        return {name: counts[name] for name in ("prompt_tokens", "completion_tokens")} | {"reasoning_tokens": reasoning}
    try:
        prompt, response = (token_ids.as_ids(its or []) for its in ids)
    except ValueError as error:
        raise BadInput(f"{url} gives what no vocabulary has, {error}: serve the target with SGLang 0.5.23") from error
    return {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(response),
        "reasoning_tokens": min(reasoning, len(response)),
        "prompt_ids": prompt,
        "response_ids": response,
    }

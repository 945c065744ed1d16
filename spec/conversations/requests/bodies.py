"""The body of a chat request, wherever a line has it, as a row: what was said, the tools offered, how it was sampled.

An OpenAI batch file has it as `body`; gateways as `body`, `request`, `request_body` or within them, also as JSON text;
SGLang's log as `obj`. Where the line itself is the body, it looks as a dataset's row does, and must be said to be one.
Only what is named here is taken over.
"""

import hashlib
import json
from typing import Any

from spec.conversations.json_lines import unreadable
from spec.conversations.requests.sampling import NEUTRAL, sampling_in
from spec.conversations.rows import UNREADABLE, Row, is_conversation

PLACES = ("body", "request", "request_body", "requestBody")
ITSELF = "."  # the place of a body that is its line
_MESSAGE = ("role", "content", "reasoning_content", "reasoning", "tool_calls", "tool_call_id", "function_call", "tools")


def columns_of(place: str | None) -> tuple[str, ...]:
    """What is read of a line."""
    if place == ITSELF:
        return ("messages", "tools", "functions", "max_completion_tokens", *NEUTRAL)
    return (place,) if place else PLACES


def holds_requests(line: Row, place: str | None = None) -> bool:
    """Judged by a first line."""
    if place == ITSELF:
        return True
    body = body_in(line, place)
    return body is not None and not is_conversation(line) and ("messages" in body or "custom_id" in line)


def body_in(line: Row, place: str | None = None) -> Row | None:
    """The body of the request that a line wraps, at `place` if that is known; None where there is none."""
    if place == ITSELF:
        return line
    for name in (place,) if place else PLACES:
        body = _parsed(line.get(name))
        if isinstance(body, dict):
            inner = _parsed(body.get("body"))
            return inner if isinstance(inner, dict) else body
    return None


def request_in(line: Row, place: str | None = None) -> Row:
    """A line as a row; one that is unreadable already stays so."""
    return line if UNREADABLE in line else row_of(body_in(line, place), line)


def row_of(body: Any, line: Row) -> Row:
    """`{"messages": [...]}`, with `tools` and `sampling` where the request has them; or why it is none to answer."""
    if not isinstance(body, dict):
        return none_of(line, "not_a_request", "no request's body")
    messages = _parsed(body.get("messages"))
    if not isinstance(messages, list) or not messages:
        return none_of(line, "not_chat" if body.get("messages") is None else "not_a_request", "a body without messages")
    row: Row = {"messages": [_message(message) for message in messages]}
    tools = body.get("tools") or body.get("functions")
    if tools and body.get("tool_choice") != "none":  # with "none" SGLang does not show them to the template
        row["tools"] = tools
    if sampling := sampling_in(body):
        row["sampling"] = sampling
    return row


def none_of(line: Any, bucket: str, why: str) -> Row:
    """A row in place of a line, which it is told from others by and keeps nothing of."""
    plain = line if isinstance(line, bytes) else json.dumps(line, sort_keys=True, default=str).encode()
    return unreadable(why, hashlib.sha256(plain).hexdigest(), bucket)


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    named = ("name",) if message.get("role") in ("tool", "function") else ()  # a tool's; a user's is a caller's
    return {name: message[name] for name in (*_MESSAGE, *named) if name in message}


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None

"""Calls and results that a dataset has as text, in OpenAI's form: so that a tool's turn has the call that it answers.

    assistant  <tool_call>{"name": ..., "arguments": {...}}</tool_call>      its text, and `tool_calls`
    user       <tool_response>...</tool_response>                            a turn of the tool

As Hermes' datasets write them, and Qwen's chat template. The tools then stand in the system prompt, between <tools> and
</tools>; they are sent there, as they stand, and are not offered once more.
"""

import ast
import json
import re
from typing import Any

from spec.conversations.rows import said_in

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
_TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.DOTALL)
_ASSISTANT, _USER, _TOOL = {"assistant", "gpt", "model", "bot", "chatgpt"}, {"user", "human"}, {"tool"}


def has_text_calls(messages: list[Any]) -> bool:
    """Whether an assistant's text holds calls."""
    return any(_text(message, _ASSISTANT, _CALL) for message in messages)


def is_of_tools(messages: list[Any]) -> bool:
    """Whether they are meant as such, as a system prompt with tools or a result shows."""
    return has_text_calls(messages) and any(
        _text(message, {"system"}, _TOOLS) or _text(message, _USER, _RESULT) for message in messages
    )


def unfolded(messages: list[Any]) -> list[Any]:
    """The messages with calls and results taken out of their text; what is neither stays as it is."""
    plain: list[Any] = []
    for message in messages:
        if (text := _text(message, _ASSISTANT, _CALL)) and not message.get("tool_calls"):
            calls = [_as_json(call) for call in _CALL.findall(text)]
            plain.append({**message, "content": _CALL.sub("", text).strip(), "tool_calls": calls})
        elif (text := _text(message, _USER | _TOOL, _RESULT)) and not _RESULT.sub("", text).strip():
            results = _RESULT.findall(text)
            ids = {"tool_call_id": message["tool_call_id"]} if len(results) == 1 and message.get("tool_call_id") else {}
            plain += [{"role": "tool", "content": result, **ids} for result in results]
        else:
            plain.append(message)
    return plain


def tools_named(messages: list[Any]) -> set[str]:
    """The names of the tools that the system prompt offers as text; none where it cannot be told."""
    text = next((text for its in messages if (text := _text(its, {"system"}, _TOOLS))), "")
    # Some prompts speak of the marks before they use them: the last ones hold the tools.
    offered = (_TOOLS.findall(text) or [""])[-1]
    found = _parsed(offered)
    tools = found if isinstance(found, list) else [_parsed(line) for line in offered.splitlines()]
    names = {tool.get("function", tool).get("name") for tool in tools if isinstance(tool, dict)}
    return {name for name in names if isinstance(name, str)}


def _text(message: Any, roles: set[str], holds: re.Pattern[str]) -> str:
    """What a message of such a role says, if it is text that holds the marks; else ""."""
    if not isinstance(message, dict):
        return ""
    role, content = said_in(message)
    known = isinstance(role, str) and role.strip().lower() in roles
    return content if known and isinstance(content, str) and "</tool" in content and holds.search(content) else ""


def _as_json(text: str) -> str:
    """A call that is written in Python's literals, as in some datasets; any other text as it stands."""
    value = _parsed(text)
    try:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) and not text.startswith('{"') else text
    except (TypeError, ValueError):
        return text


def _parsed(text: str) -> Any:
    """What stands there as JSON or in Python's literals; else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text

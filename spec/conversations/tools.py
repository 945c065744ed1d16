"""Rows with tools: what is offered to the target, what was called, what the tools said, and where an answer is due.

What a tool said answers the dataset's call, not one that the target might make. So each answer of such a row is asked
for with the history of the dataset, as a row of its own, and no answer becomes part of another's history.

OpenAI's schema is read, in a column or in a message, as JSON or as JSON text, and where their meaning is certain the
older `functions` and `function_call`, ShareGPT's turns of calls (`function_call`) and of results (`observation`), and
calls and results between marks in the text.
"""

import json
from typing import Any, NamedTuple

from spec.conversations.rows import Message, Reject, Row, Said, content_of, part_of, role_of, said_in
from spec.conversations.text_calls import has_text_calls, is_of_tools, tools_named, unfolded

Tool = dict[str, Any]  # {"type": "function", "function": {"name", ...}}

POLICY = {"history": "dataset", "tool_choice": "auto", "strict": "as the tools say"}  # what `run.json` records
_COLUMNS = ("tools", "functions")
_REASONING = ("reasoning_content", "reasoning")
_RESULTS = {"tool", "function", "observation", "function_response", "tool_response", "ipython"}
_CALLS = {"function_call", "tool_call", "tool_calls"}  # roles whose text is the calls, as JSON


class Trace(NamedTuple):
    """A row with tools as the server takes it."""

    tools: list[Tool]
    messages: list[Message]
    due: list[int]  # an answer is due to the messages before each


class Exchange(NamedTuple):
    """One answer of a `Trace` to ask for."""

    number: int  # of the trace's answers, from 0
    history: list[Message]
    tools: list[Tool]
    sampling: dict[str, Any] | None = None  # of a request, where its own is kept


def has_tools(row: Row, messages: list[Any]) -> bool:
    """Whether a row offers tools, calls one, or holds what one said; `messages` are those of the row."""
    given = any(_is_given(row.get(name)) for name in _COLUMNS)
    return given or any(map(_is_of_tools, messages)) or is_of_tools(messages)


def content(row: Row, messages: list[Any]) -> Any:
    """What a row with tools is known by: its tools, too."""
    return [messages, [row.get(name) for name in _COLUMNS]]


def read_trace(row: Row, messages: list[Any]) -> Trace:
    """Raises `Reject` where its tools, its calls or its messages cannot be sent as they are meant."""
    offered = _tools(row, messages)
    names = {tool["function"]["name"] for tool in offered} or tools_named(messages)
    as_text = has_text_calls(messages)
    sent: list[Message] = []
    waiting: list[str | None] = []  # ids of the calls that no tool has answered
    for message in unfolded(messages):
        said = said_in(message)
        spelled = said.role.strip().lower() if isinstance(said.role, str) else None
        if spelled in _RESULTS:
            sent.append(_result(message, said, waiting, sent[-1] if sent else {}))
            continue
        _check_answered(sent, waiting)
        plain = _called(message, said) if spelled in _CALLS else _message(message, said)
        waiting = [call.get("id") for call in plain.get("tool_calls", ())]
        for call in plain.get("tool_calls", ()):
            if call["function"]["name"] not in names and (names or not as_text):
                offer = f"its tools are {', '.join(sorted(names))}" if names else "it has no tools"
                raise Reject("unknown_tool", f"the row calls {call['function']['name']!r}; {offer}")
        if plain["role"] != "system" or plain["content"] != "":
            sent.append(plain)
    _check_answered(sent, waiting)
    _dumped([offered, sent], "not_text")
    return Trace(offered, sent, _due(sent))


def exchanges(trace: Trace, turns: str | int) -> list[Exchange]:
    """The answers to ask for: all, or the last `turns` ones."""
    every = [Exchange(number, trace.messages[:place], trace.tools) for number, place in enumerate(trace.due)]
    return every if turns == "all" else every[-int(turns) :]


def of_request(row: Row, messages: list[Any], sampling: dict[str, Any] | None) -> Exchange:
    """What a server was asked, with tools or without: all of its history, and the answer after its last message."""
    trace = read_trace(row, messages)
    if trace.due[-1] != len(trace.messages):
        raise Reject("no_prompt", "nothing is asked after the last answer")
    return Exchange(0, trace.messages, trace.tools, sampling)


def _due(messages: list[Message]) -> list[int]:
    """An answer is due where the dataset has one, and after its last message; of several in a row, to the first."""
    roles = [message["role"] for message in messages] + ["assistant"]
    first = roles.index("user") if "user" in roles else len(roles)
    due = [at for at in range(first + 1, len(roles)) if roles[at] == "assistant" and roles[at - 1] != "assistant"]
    if not due:
        raise Reject("no_prompt", "no user turn")
    return due


def _tools(row: Row, messages: list[Any]) -> list[Tool]:
    """What is offered, from whatever place; both of two places must say the same."""
    places = [row.get(name) for name in _COLUMNS]
    places += [message.get("tools") for message in messages if isinstance(message, dict)]
    found = [[_tool(tool) for tool in _listed(value)] for value in places if _is_given(value)]
    if any(its != found[0] for its in found):
        raise Reject("bad_tools", "different tools in several places of the row")
    return found[0] if found else []


def _listed(value: Any) -> list[Any]:
    parsed = _parsed(_without_nulls(value), "bad_tools", "tools")
    if not isinstance(parsed, list):
        raise Reject("bad_tools", f"tools are {type(parsed).__name__}, not a list")
    return parsed


def _tool(value: Any) -> Tool:
    """A function in OpenAI's wrapper, put there if it is bare."""
    plain = _parsed(value, "bad_tools", "a tool")
    kind = plain.get("type", "function") if isinstance(plain, dict) else None
    if isinstance(plain, dict) and "function" not in plain and "name" in plain:
        kind, plain = "function", {"type": "function", "function": plain}
    function = plain.get("function") if isinstance(plain, dict) else None
    if kind != "function" or not isinstance(function, dict) or not _is_name(function.get("name")):
        raise Reject("bad_tools", f"no function with a name: {str(value)[:80]}")
    return {"type": "function", **plain}


def _message(message: Any, said: Said) -> Message:
    """A message of a user, of the system, or of the assistant with its calls and its reasoning."""
    role = role_of(said)
    if role != "assistant":
        return {"role": role, "content": content_of(said)}
    calls = message.get("tool_calls")
    if not _is_given(calls) and _is_given(message.get("function_call")):
        calls = [message["function_call"]]
    reasoning = next((its for name in _REASONING if _is_name(its := message.get(name))), None)
    plain: Message = {"role": role, "content": _text(said, may_be_none=reasoning is not None or _is_given(calls))}
    if reasoning is not None:
        plain["reasoning_content"] = reasoning
    return plain | ({"tool_calls": _calls(calls)} if _is_given(calls) else {})


def _called(message: Any, said: Said) -> Message:
    """A turn whose text is the calls."""
    calls = message.get("tool_calls")
    return {"role": "assistant", "content": "", "tool_calls": _calls(calls if _is_given(calls) else said.content)}


def _calls(value: Any) -> list[dict[str, Any]]:
    parsed = _parsed(_without_nulls(value), "bad_tool_call", "a call")
    return [_call(call) for call in (parsed if isinstance(parsed, list) else [parsed])]


def _call(value: Any) -> dict[str, Any]:
    call = _parsed(value, "bad_tool_call", "a call")
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise Reject("bad_tool_call", f"no call of a function: {str(value)[:80]}")
    given = [function[name] for name in ("arguments", "parameters") if function.get(name) is not None]
    arguments = given[0] if given else "{}"
    plain = {"type": "function", "function": {"name": function["name"], "arguments": _arguments(arguments)}}
    return {"id": call["id"], **plain} if _is_name(call.get("id")) else plain


def _arguments(value: Any) -> str:
    """Arguments as JSON text, which is how OpenAI's schema has them; text is left as it is."""
    if isinstance(value, str) and not value.strip():
        return "{}"
    if not isinstance(_parsed(value, "bad_tool_call", "arguments"), dict):
        raise Reject("bad_tool_call", f"arguments are no JSON object: {str(value)[:80]}")
    return value if isinstance(value, str) else _dumped(value, "bad_tool_call")


def _result(message: Any, said: Said, waiting: list[str | None], before: Message) -> Message:
    """What a tool said, to the call with its id, or to the first that waits where one of both has no id."""
    named = message.get("tool_call_id") if _is_name(message.get("tool_call_id")) else None
    if not waiting and before.get("role") == "assistant" and "tool_calls" not in before:
        raise Reject(
            "call_as_text", f"a {said.role} turn answers a call in an unknown form: {before['content'][:80]!r}"
        )
    if not waiting or (named is not None and named not in waiting and None not in waiting):
        raise Reject("tool_without_call", f"a {said.role} turn answers no call before it")
    call = named if named in waiting else waiting[0]
    waiting.remove(call)
    plain = {"role": "tool", "content": _text(said)}
    answered = {"tool_call_id": named or call, "name": message.get("name")}
    return plain | {name: value for name, value in answered.items() if _is_name(value)}


def _check_answered(sent: list[Message], waiting: list[str | None]) -> None:
    """`Reject` where some calls of a turn have a result and others have none.

    A lone result that names no call, to calls without ids, may be that of all of them: some datasets join them.
    """
    if not waiting or not sent or sent[-1]["role"] != "tool":
        return
    joined = not any(waiting) and "tool_call_id" not in sent[-1] and sent[-2]["role"] != "tool"
    if not joined:
        raise Reject("call_without_result", f"{len(waiting)} of a turn's calls have no result, where others have one")


def _text(said: Said, *, may_be_none: bool = False) -> Any:
    """What was said, which may be blank: a call needs no words, and a tool may have nothing to say."""
    if isinstance(said.content, list) and said.content:
        return [part_of(part, said) for part in said.content]
    if isinstance(said.content, str) or (said.content is None and may_be_none):
        return said.content or ""
    raise Reject("not_text", f"a {said.role} turn holds {type(said.content).__name__}")


def _parsed(value: Any, bucket: str, what: str) -> Any:
    """`value`, or what it says as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise Reject(bucket, f"{what} as text, and no JSON: {value[:80]!r}") from error


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _dumped(value: Any, bucket: str) -> str:
    """`value` as the JSON that can be sent; `Reject` for what JSON or UTF-8 cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise Reject(bucket, f"nothing that JSON can hold: {error}") from error
    return text


def _without_nulls(value: Any) -> Any:
    """`value` less the fields that are null: a table gives every object of a column the fields of all others.

    A default that is null is one. What stands there as JSON text is never changed.
    """
    if isinstance(value, dict):
        kept = {name: its for name, its in value.items() if its is not None or name == "default"}
        return {name: _without_nulls(its) for name, its in kept.items()}
    return [_without_nulls(its) for its in value] if isinstance(value, list) else value


def _is_of_tools(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    role = said_in(message).role
    return (isinstance(role, str) and role.strip().lower() in _RESULTS | _CALLS) or any(
        _is_given(message.get(name)) for name in ("tools", "tool_calls", "function_call")
    )


def _is_given(value: Any) -> bool:
    """Whether there is anything; text may say that there is nothing, as "[]"."""
    return bool(value) and not (isinstance(value, str) and "".join(value.split()) in ("", "[]", "{}", "null"))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())

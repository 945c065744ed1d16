"""Rows with tools: what is sent of them, where answers are due, and the bucket of what cannot be sent as meant."""

import json

import pytest

from spec.conversations.ids import content_hash
from spec.conversations.rows import Reject, messages_in
from spec.conversations.tools import content, exchanges, has_tools, read_trace

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "default": None}}},
        "strict": True,
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
SYSTEM, USER = {"role": "system", "content": "be brief"}, {"role": "user", "content": "Paris?"}


def call(name="weather", arguments='{"city": "Paris"}', **its):
    return {**its, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*its):
    return {"role": "assistant", "content": "", "tool_calls": list(its)}


def result(text="rain", **its):
    return {"role": "tool", "content": text, **its}


SAID = {"role": "assistant", "content": "It rains."}
PAIR = calls(call(id="a"), call(id="b"))
CHAT = [SYSTEM, USER, calls(call(id="a")), result(tool_call_id="a"), SAID]


def read(row, column="messages"):
    messages = messages_in(row, column)
    assert has_tools(row, messages)
    return read_trace(row, messages)


def rejected(row, column="messages"):
    with pytest.raises(Reject) as caught:
        read(row, column)
    return caught.value.bucket


def test_each_answer_of_the_dataset_is_due_with_all_that_was_before_it():
    trace = read({"messages": [*CHAT, USER], "tools": [WEATHER, CLOCK]})
    assert trace.tools == [WEATHER, CLOCK] and trace.messages == [*CHAT, USER]
    asked = exchanges(trace, "all")
    assert [exchange.number for exchange in asked] == [0, 1, 2]
    assert [exchange.history for exchange in asked] == [CHAT[:2], CHAT[:4], [*CHAT, USER]]
    assert all(exchange.tools == [WEATHER, CLOCK] for exchange in asked)


def test_turns_bounds_the_answers_and_keeps_their_numbers():
    trace = read({"messages": [*CHAT, USER], "tools": [WEATHER]})
    assert [exchange.number for exchange in exchanges(trace, 1)] == [2]
    assert [exchange.number for exchange in exchanges(trace, 2)] == [1, 2]
    assert exchanges(trace, 9) == exchanges(trace, "all")


def test_of_answers_in_a_row_the_first_is_due_and_none_before_a_user():
    greeting = {"role": "assistant", "content": "Hello!"}
    trace = read({"messages": [greeting, USER, calls(call()), calls(call()), result(), SAID], "tools": [WEATHER]})
    assert trace.messages[0] == greeting and trace.due == [2, 5]


@pytest.mark.parametrize(
    "row",
    [
        {"tools": json.dumps([WEATHER])},
        {"tools": " " * 20 + json.dumps([WEATHER])},
        {"functions": [WEATHER["function"]]},
        {"functions": json.dumps([WEATHER["function"]])},
        {"tools": [json.dumps(WEATHER)]},
        {"tools": [WEATHER], "functions": [WEATHER["function"]]},
        {"tools": [{"function": WEATHER["function"]}]},
        {"messages": [{**SYSTEM, "tools": [WEATHER]}, *CHAT[1:]]},
        {"messages": [{**SYSTEM, "tools": json.dumps([WEATHER])}, *CHAT[1:]], "tools": None},
    ],
)
def test_tools_are_read_from_a_column_or_a_message_as_json_or_text(row):
    trace = read({"messages": CHAT} | row)
    assert trace.tools == [WEATHER] and trace.messages == CHAT


@pytest.mark.parametrize(
    "given",
    [
        {"tool_calls": json.dumps([call(id="a")])},
        {"tool_calls": [call(id="a", index=0)]},
        {"tool_calls": [call(arguments={"city": "Paris"}, id="a")]},
        {"tool_calls": [call(arguments={"city": "Paris", "unit": None}, id="a")], "name": None},  # as tables give it
        {"tool_calls": [{"id": "a", "name": "weather", "arguments": {"city": "Paris"}}]},
        {"tool_calls": [{"id": "a", "name": "weather", "parameters": {"city": "Paris"}}]},
        {"tool_calls": call(id="a")},
    ],
)
@pytest.mark.parametrize("content", ["", None])
def test_calls_are_sent_in_openais_form(given, content):
    messages = [SYSTEM, USER, {"role": "assistant", "content": content, **given}, *CHAT[3:]]
    assert read({"messages": messages, "tools": [WEATHER]}).messages == CHAT


def test_older_forms_of_calls_and_results():
    said = {"name": "weather", "arguments": '{"city": "Paris"}'}
    messages = [USER, {"role": "assistant", "content": None, "function_call": said}]
    messages += [{"role": "function", "name": "weather", "content": "rain"}, SAID]
    trace = read({"messages": messages, "functions": [WEATHER["function"]]})
    assert trace.messages == [USER, calls(call()), result(name="weather"), SAID]


def test_turns_of_sharegpt():
    turns = [("human", "Paris?"), ("function_call", '{"name": "weather", "arguments": {"city": "Paris"}}')]
    turns += [("observation", "rain"), ("gpt", "It rains.")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns], "tools": json.dumps([WEATHER])}
    assert read(row, "conversations").messages == [USER, calls(call()), result(), SAID]


def test_calls_in_parallel_are_answered_in_any_order():
    both = calls(call(id="a"), call("clock", "{}", id="b"))
    row = {
        "messages": [USER, both, result("noon", tool_call_id="b"), result(tool_call_id="a")],
        "tools": [WEATHER, CLOCK],
    }
    trace = read(row)
    assert trace.messages == row["messages"] and trace.due == [1, 4]


def test_calls_without_any_result_or_with_one_that_may_be_of_all_are_sent_as_they_stand():
    for messages in ([USER, PAIR], [USER, PAIR, USER], [USER, calls(call(), call()), result("rain, rain"), SAID]):
        assert read({"messages": messages, "tools": [WEATHER]}).messages == messages


def test_a_result_without_an_id_goes_to_the_first_call_that_waits():
    both = calls(call(id="a"), call(id="b"))
    trace = read({"messages": [USER, both, result("rain"), result("sun")], "tools": [WEATHER]})
    assert [message.get("tool_call_id") for message in trace.messages[2:]] == ["a", "b"]


def test_reasoning_words_beside_calls_and_blank_results_are_kept():
    thinking = {**calls(call(id="a")), "content": "I look.", "reasoning_content": "hm"}
    trace = read({"messages": [USER, thinking, result("", tool_call_id="a")], "tools": [WEATHER]})
    assert trace.messages == [USER, thinking, result("", tool_call_id="a")]
    parts = [{"type": "text", "text": "rain", "image_url": None}]
    trace = read({"messages": [USER, thinking, result(parts)], "tools": [WEATHER]})
    assert trace.messages[2]["content"] == [{"type": "text", "text": "rain"}]


def test_what_a_table_fills_up_with_nulls_is_not_sent():
    filled = {"type": "function", "strict": None, "function": {**CLOCK["function"], "description": None}}
    filled["function"]["parameters"] = {"type": "object", "properties": {"city": None}, "required": None}
    row = {"messages": [{**USER, "tool_calls": None, "tool_call_id": None, "function_call": None}], "tools": [filled]}
    trace = read(row)
    assert trace.tools == [CLOCK] and trace.messages == [USER]


def test_text_is_sent_as_it_stands():
    spaced = '{ "city":"Paris" , "unit":null}'
    trace = read({"messages": [USER, calls(call(arguments=spaced))], "tools": [WEATHER]})
    assert trace.messages[1]["tool_calls"][0]["function"]["arguments"] == spaced
    said = {"role": "function_call", "content": '{"name": "weather", "arguments": {"unit": null}}'}
    nullable = {"type": "function", "function": {"name": "weather", "description": None, "parameters": {"const": None}}}
    trace = read({"messages": [USER, said], "tools": json.dumps([nullable])})
    assert trace.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"unit": null}'
    assert trace.tools == [nullable]


def test_a_rows_id_is_the_same_on_every_machine_and_version():
    row = {"messages": CHAT, "tools": [WEATHER], "answer": "nobody reads it"}
    assert content_hash(content(row, messages_in(row, "messages"))) == "bc6f4bf3b30db6c9b9d67b1aecb792b2"


@pytest.mark.parametrize("nothing", [None, [], "", "[]", " [          ]\n", {}, "{}", "null"])
def test_a_row_whose_tools_are_none_is_an_ordinary_chat(nothing):
    row = {"messages": [{**USER, "tool_calls": nothing, "tools": nothing}], "tools": nothing, "functions": nothing}
    assert not has_tools(row, messages_in(row, "messages"))


@pytest.mark.parametrize(
    ("row", "bucket"),
    [
        ({"tools": {"weather": {}}}, "bad_tools"),
        ({"tools": "weather, clock"}, "bad_tools"),
        ({"tools": ["weather"]}, "bad_tools"),
        ({"tools": [{"type": "web_search"}]}, "bad_tools"),
        ({"tools": [{"type": "function", "function": {"description": "nameless"}}]}, "bad_tools"),
        ({"tools": [None]}, "bad_tools"),
        ({"tools": 7}, "bad_tools"),
        ({"tools": [WEATHER], "functions": [CLOCK]}, "bad_tools"),
        ({"tools": [{"name": "weather", "parameters": {"x": float("nan")}}]}, "not_text"),
        ({"tools": [{"name": "weather", "description": "\ud83d"}]}, "not_text"),
        ({"messages": [USER, calls(call("stock"))]}, "unknown_tool"),
        ({"messages": [USER, calls(call())], "tools": None}, "unknown_tool"),
        ({"messages": [USER, calls(call(arguments="city=Paris"))]}, "bad_tool_call"),
        ({"messages": [USER, calls(call(arguments='{"city": NaN}'))]}, "bad_tool_call"),
        ({"messages": [USER, calls(call(arguments='["Paris"]'))]}, "bad_tool_call"),
        ({"messages": [USER, calls(call(arguments=["Paris"]))]}, "bad_tool_call"),
        ({"messages": [USER, calls({"id": "a"})]}, "bad_tool_call"),
        ({"messages": [USER, calls("weather()")]}, "bad_tool_call"),
        ({"messages": [USER, {"role": "function_call", "content": "weather()"}]}, "bad_tool_call"),
        ({"messages": [USER, result()]}, "tool_without_call"),
        ({"messages": [USER, calls(call(id="a")), result(tool_call_id="b")]}, "tool_without_call"),
        ({"messages": [USER, calls(call(id="a")), result(), result()]}, "tool_without_call"),
        ({"messages": [USER, calls(call()), USER, result()]}, "tool_without_call"),
        ({"messages": [USER, PAIR, result(tool_call_id="b"), SAID]}, "call_without_result"),
        ({"messages": [USER, PAIR, result(tool_call_id="b")]}, "call_without_result"),
        ({"messages": [USER, PAIR, result(), USER]}, "call_without_result"),
        ({"messages": [USER, calls(call(), call(), call()), result(), result(), SAID]}, "call_without_result"),
        ({"messages": [USER, calls(call()), result({"rain": 1})]}, "not_text"),
        ({"messages": [USER, calls(call()), result([{"type": "image_url", "image_url": "SECRET"}])]}, "image"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "not_text"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "not_text"),
        ({"messages": [USER, {"role": "narrator", "content": "once"}]}, "unknown_role"),
        ({"messages": [USER, "just text"]}, "unknown_role"),
        ({"messages": "just text"}, "not_messages"),
        ({"messages": [SYSTEM]}, "no_prompt"),
        ({"messages": None}, "no_prompt"),
    ],
)
def test_what_cannot_be_sent_as_it_is_meant_is_rejected_by_name(row, bucket):
    assert rejected({"messages": CHAT, "tools": [WEATHER]} | row) == bucket

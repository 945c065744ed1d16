"""Calls and results that stand as text between marks: Hermes' way."""

import asyncio
import json

import pytest

from spec.conversations.filter import filter_shard
from spec.conversations.ids import Shard
from spec.conversations.lineage import read_run
from spec.conversations.rows import Reject, messages_in
from spec.conversations.server import Sampling, Server
from spec.conversations.shards import read_answers, read_counts
from spec.conversations.sources import open_source
from spec.conversations.survey import survey
from spec.conversations.tools import exchanges, has_tools, read_trace
from spec.storage import open_store
from tests.stub_server import StubServer

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
SYSTEM = f"You call functions within <tools></tools> marks. <tools>\n{json.dumps([TOOL])}\n</tools> Use <tool_call>."
CALL = {"name": "weather", "arguments": {"city": "Paris", "unit": None}}


def said(role, text):
    return {"from": role, "value": text}


def marked(call=CALL, mark="tool_call"):
    return f"<{mark}>\n{call if isinstance(call, str) else json.dumps(call)}\n</{mark}>"


def hermes(call=None, result="tool", response=None, **row):
    turns = [said("system", SYSTEM), said("human", "Paris?"), said("gpt", call or f"<think>Ask.</think>\n{marked()}")]
    turns += [said(result, response or marked("rain", "tool_response")), said("gpt", "It rains.")]
    return {"conversations": turns, **row}


def read(row):
    messages = messages_in(row, "conversations")
    assert has_tools(row, messages)
    return read_trace(row, messages)


def asked_call(arguments='{"city": "Paris", "unit": null}'):
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


@pytest.mark.parametrize(
    "row",
    [
        hermes(),
        hermes(result="human"),
        hermes(response="rain"),  # a turn of the tool without marks
        hermes(f"<think>Ask.</think>\n{marked(str(CALL))}"),  # in Python's literals
    ],
)
def test_a_result_has_the_call_that_stands_as_text_before_it(row):
    trace = read(row)
    assert trace.tools == []  # they stand in the system prompt, which is sent as it stands
    system, user = {"role": "system", "content": SYSTEM}, {"role": "user", "content": "Paris?"}
    called = {"role": "assistant", "content": "<think>Ask.</think>", "tool_calls": [asked_call()]}
    result, answer = {"role": "tool", "content": "rain"}, {"role": "assistant", "content": "It rains."}
    assert trace.messages == [system, user, called, result, answer]
    assert [its.history for its in exchanges(trace, "all")] == [[system, user], [system, user, called, result]]


def test_calls_in_parallel_have_a_result_each():
    results = marked("rain", "tool_response") + "\n" + marked("sun", "tool_response")
    trace = read(hermes(f"{marked()}\n{marked()}", response=results))
    assert trace.messages[2] == {"role": "assistant", "content": "", "tool_calls": [asked_call(), asked_call()]}
    assert [its["content"] for its in trace.messages[3:5]] == ["rain", "sun"]


@pytest.mark.parametrize(
    ("row", "bucket"),
    [
        (hermes("[weather(city='Paris')]"), "call_as_text"),  # of another form
        (hermes(marked("weather(city='Paris')")), "bad_tool_call"),
        (hermes(marked({"name": "weather", "arguments": {"x": float("nan")}})), "bad_tool_call"),
        (hermes(marked({"name": "stock", "arguments": {}})), "unknown_tool"),
        (hermes(response=marked("a", "tool_response") * 2), "tool_without_call"),
    ],
)
def test_what_is_no_call_of_a_known_form_is_rejected_by_name(row, bucket):
    with pytest.raises(Reject) as caught:
        read(row)
    assert caught.value.bucket == bucket


def test_talk_about_the_marks_is_an_ordinary_chat():
    row = {"conversations": [said("human", "How do calls look?"), said("gpt", marked()), said("human", "Thanks.")]}
    assert not has_tools(row, messages_in(row, "conversations"))


def test_where_no_list_of_tools_can_be_read_any_name_is_one():
    row = hermes(marked({"name": "stock", "arguments": {}}))
    row["conversations"][0]["value"] = "Tools: stock(name). <tools>\nstock(name)\n</tools>"
    assert read(row).messages[2]["tool_calls"][0]["function"]["name"] == "stock"


def test_such_a_run_says_so_and_one_that_was_finished_before_is_finished(jsonl, tmp_path, monkeypatch):
    def filtered(stub, path):
        store = open_store(tmp_path / "run")
        server = Server(stub.url, Sampling(max_tokens=64))
        _, worked = asyncio.run(filter_shard(store, open_source(str(path)), server, Shard(0, 1), parallel=2))
        return store, worked

    with StubServer(ids=True) as stub:
        store, _ = filtered(stub, jsonl([hermes()]))
        assert read_counts(store)["answers"] == 2 and len(stub.asked) == 2
        assert all("tools" not in its.body for its in stub.asked)
        assert [its["messages"][-2]["role"] for its in read_answers(store)].count("tool") == 1
        assert read_run(store)["sampling"]["tools"]["calls_as_text"] == "read"
        assert not filtered(stub, tmp_path / "rows.jsonl")[1] and len(stub.asked) == 2

        before = tmp_path / "before"
        before.mkdir()
        (tmp_path / "run").rename(before / "run")
        with monkeypatch.context() as earlier:
            earlier.setattr("spec.conversations.filter.survey", lambda *its: survey(*its)._replace(text_calls=0))
            filtered(stub, tmp_path / "rows.jsonl")
        assert "calls_as_text" not in read_run(store)["sampling"]["tools"] and len(stub.asked) == 4
        assert not filtered(stub, tmp_path / "rows.jsonl")[1] and len(stub.asked) == 4

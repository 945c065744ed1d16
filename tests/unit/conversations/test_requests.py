"""What a server was asked, as rows, from batch files, gateways' lines and tables: what of them is asked and learnt."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spec.conversations.lineage import read_run
from spec.conversations.rows import UNREADABLE
from spec.conversations.shards import read_answers, read_counts, read_lines
from spec.conversations.sources import open_source
from spec.samples import prepare
from tests.answered import save_target
from tests.requested import asked, buckets, event, user
from tests.tiny_models import tiny_tokenizer

SAID = {**user("hi"), "user": "SECRET", "name": "SECRET", "cache_control": {"key": "SECRET"}}
BODY = {"model": "gpt-x", "messages": [SAID], "user": "SECRET", "stream": True, "n": 3, "logprobs": True}


@pytest.mark.parametrize(
    "line",
    [
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": BODY},
        {"request": BODY, "response": {"choices": []}, "headers": {"authorization": "SECRET"}},
        {"request": {"headers": {"authorization": "SECRET"}, "body": json.dumps(BODY)}},
        {"request": {"method": "POST", "body": BODY}, "query": {"a": "b"}},
        {"request_body": json.dumps(BODY), "response_body": "{}"},
        {"requestBody": BODY, "status": 200},
    ],
)
def test_batch_files_and_gateways_lines_are_requests(jsonl, line):
    source = open_source(str(jsonl([line])))
    assert list(source.rows()) == [{"messages": [user("hi")]}] and source.holds_requests
    assert source.total == 1


def test_the_place_of_the_body_may_be_named(jsonl):
    rows = jsonl([{"payload": BODY}, {"payload": None}])
    assert buckets(rows, column="payload") == ["hi", "not_a_request"]


def test_a_batch_counts_what_is_no_chat(jsonl):
    lines = [{"custom_id": "1", "body": {"input": "embed me"}}, {"custom_id": "2", "body": BODY}, {"custom_id": "3"}]
    path = jsonl(lines)
    path.write_text(path.read_text() + '{"custom')
    source = open_source(str(path))
    first, second, third, last = source.rows()
    assert [row[UNREADABLE][2] for row in (first, third)] == ["not_chat", "not_a_request"] and "messages" in second
    assert "not JSON" in last[UNREADABLE][0]


def test_a_datasets_messages_stay_a_datasets_whatever_stands_beside_them(jsonl):
    source = open_source(str(jsonl([{"messages": [user("hi")], "request": BODY, "model": "x"}])))
    assert not source.holds_requests and source.column == "messages" and "requests" not in source.lineage


def test_tools_come_along_unless_the_request_forbids_them(jsonl):
    tools = [{"type": "function", "function": {"name": "f", "strict": True}}]
    bodies = [{"tools": tools}, {"tools": tools, "tool_choice": "none"}, {"functions": tools}]
    rows = list(open_source(str(jsonl([{"custom_id": "", "body": {**BODY, **body}} for body in bodies]))).rows())
    assert [row.get("tools") for row in rows] == [tools, None, tools]


def test_a_request_is_answered_after_its_last_message_alone(run, exact, store, jsonl):
    history = [user("a"), {"role": "assistant", "content": "THEIRS"}, user("b")]
    bodies = [{"messages": history}, {"messages": history[:2]}, {"messages": [{"role": "system", "content": "s"}]}]
    assert run("--dataset-name", jsonl([{"custom_id": "1", "body": body} for body in bodies]))[0] == 0
    (row,) = read_answers(store)
    assert row["messages"][:-1] == history and len(row["turns"]) == 1
    assert asked(exact) == [history] and read_counts(store)["no_prompt"] == 2


def test_without_token_ids_nothing_is_learnt_of_what_another_said(run, stub, store, jsonl):
    bodies = [[user("a"), {"role": "assistant", "content": "THEIRS"}, user("b")], [user("c")]]
    assert run("--dataset-name", jsonl([{"custom_id": "1", "body": {"messages": body}} for body in bodies]))[0] == 0
    assert read_counts(store)["no_token_ids"] == 1 and [row["messages"][0] for row in read_answers(store)] == [
        user("c")
    ]


def test_requests_are_rows_once_whatever_ends_the_run_and_only_their_answers_bear_loss(run, exact, store, tmp_path):
    log = tmp_path / "host_0.log"
    history = [user("a"), {"role": "assistant", "content": "THEIRS"}]
    bodies = [{"messages": [*history, user(f"question {number % 30}")]} for number in range(40)]
    log.write_text("no request\n" + "".join(map(event, bodies)))
    assert run("--dataset-name", log)[0] == 0
    (part,) = (entry.key for entry in store.list("answers") if "/part-" in entry.key)
    lines = store.read(part).splitlines(keepends=True)
    assert len(lines) == 41 and read_counts(store)["duplicate"] == 10
    store.write(part, b"".join(lines[::2]))  # what a kill may have left
    store.delete("answers/shard-00000-of-00001/shard.json")
    exact.asked.clear()
    assert run("--dataset-name", log)[0] == 0
    assert len(exact.asked) == sum(b'"turns"' in line for line in lines[1::2])
    first, second = (sorted(json.loads(line)["id"] for line in its) for its in (lines, read_lines(store)))
    assert first == second
    settings = prepare.Settings({}, max_length=1024, held_out=0.0, draft_vocab_size=100)
    marker, _ = prepare.prepare(store, str(save_target(tiny_tokenizer(), tmp_path / "target")), settings)
    assert marker.counts["train"] == 30
    masks = np.load(tmp_path / "run" / "samples" / "train" / "loss_mask.npy")
    assert masks.sum() == read_counts(store)["completion_tokens"]


def test_bodies_in_a_table_are_requests_too(tmp_path):
    table = pa.table({"id": [1, 2], "day": [datetime.date.today()] * 2, "request_body": [json.dumps(BODY), "odd"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert buckets(tmp_path / "rows.parquet") == ["hi", "not_a_request"]
    assert buckets(tmp_path / "rows.parquet", column="request_body") == ["hi", "not_a_request"]


def test_a_line_that_is_a_body_itself_is_a_request_where_that_is_said(run, exact, store, jsonl):
    history = [user("a"), {"role": "assistant", "content": "THEIRS"}, user("b")]
    rows = jsonl([{"model": "x", "messages": history, "temperature": 0.3, "user": "SECRET", "stream": True}, {"id": 1}])
    assert not open_source(str(rows)).holds_requests
    assert run("--dataset-name", rows, "--column", ".", "--keep-sampling")[0] == 0
    assert [(its.messages, its.body["temperature"]) for its in exact.asked] == [(history, 0.3)]
    assert read_counts(store)["not_chat"] == 1 and read_run(store)["dataset"]["column"] == "."
    table = pa.table({"messages": [json.dumps(history)], "image": [b"\xff"], "temperature": [0.3]})
    pq.write_table(table, rows.with_name("rows.parquet"))
    (row,) = open_source(str(rows.with_name("rows.parquet")), column=".").rows()
    assert row == {"messages": history, "sampling": {"temperature": 0.3}}

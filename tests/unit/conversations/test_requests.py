"""What a server was asked, as rows: SGLang's logs (logs/ holds lines of 0.5.23), batch files, gateways' lines."""

import datetime
import gzip
import json
import shutil
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spec.conversations.lineage import read_run
from spec.conversations.patterns import stored_files
from spec.conversations.rows import UNREADABLE
from spec.conversations.shards import read_answers, read_counts, read_lines
from spec.conversations.sources import open_source
from spec.errors import BadInput
from spec.samples import prepare
from spec.storage import open_store
from tests.answered import save_target
from tests.tiny_models import tiny_tokenizer

LOGS = Path(__file__).parent / "logs"


@pytest.fixture
def exact(stub):
    """The stand-in as SGLang is: it says which tokens it read and wrote."""
    stub.ids, stub.tokenizes = True, False
    return stub


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "run")


def user(text):
    return {"role": "user", "content": text}


def asked(stub):
    return sorted((its.messages for its in stub.asked), key=json.dumps)


def buckets(path, **options):
    """Each row as its first user text, or the bucket that it carries."""
    rows = open_source(str(path), **options).rows()
    return [row[UNREADABLE][2] if UNREADABLE in row else row["messages"][0]["content"] for row in rows]


def test_a_log_that_sglang_wrote_is_one_row_a_request(run, exact, store):
    code, said = run("--dataset-name", LOGS / "level3.log")
    assert code == 0, said
    kinds = {"answers": 6, "with_tools": 2, "duplicate": 1, "not_chat": 2}
    assert {name: read_counts(store)[name] for name in kinds} == kinds and read_counts(store)["rows"] == 9
    history = [{"role": "system", "content": "Be brief."}, user("What is snow?")]
    history += [{"role": "assistant", "content": "Frozen."}, user("And hail?")]
    parts = [{"type": "text", "text": "What"}, {"type": "text", "text": "is fog?"}]
    story = "A long story. " + "x" * 2500
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    called = [user("Weather in Rome?"), {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", **call}]}]
    called += [{"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
    wanted = [[user("What is rain?")], history, [user(parts)], [user(story)], [user("Weather in Oslo?")], called]
    assert asked(exact) == sorted(wanted, key=json.dumps)
    assert all({"temperature": 0.0, "max_tokens": 2048}.items() <= its.body.items() for its in exact.asked)
    offered = [its.body["tools"] for its in exact.asked if "tools" in its.body]
    assert [[tool["function"]["strict"] for tool in tools] for tools in offered] == [[True], [True]]
    assert all("." not in row["id"] and len(row["turns"]) == 1 for row in read_answers(store))
    assert read_run(store)["dataset"]["requests"] is True


def test_nothing_of_a_caller_is_stored(run, exact, tmp_path):
    lines = (LOGS / "level3.log").read_text()
    assert all(f"SECRET-{what}" in lines for what in ("KEY", "USER", "RID", "SALT", "ROUTE"))
    log = tmp_path / "all.log"
    log.write_text(
        lines + '[2026-11-29 21:53:24] {"event": "no one knows", "key": "SECRET-KEY"}\nSECRET-LINE\n{"SECRET\n'
    )
    code, said = run("--dataset-name", log, "--keep-sampling")
    assert code == 0
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) >= 3 and b"What is rain?" in b"".join(written)
    assert not any(word in b"".join(written) for word in (b"SECRET", b"another", b"Bearer"))
    assert "SECRET" not in said and all("SECRET" not in json.dumps(its.body) for its in exact.asked)


def test_what_level_2_cut_is_counted_and_never_asked(run, exact, store):
    assert buckets(LOGS / "level2.log") == ["Be brief.", "cut_by_log"]
    assert run("--dataset-name", LOGS / "level2.log")[0] == 0
    assert read_counts(store)["cut_by_log"] == 1 and len(exact.asked) == 1


def event(body, name="request.received.openai"):
    return f"[2026-11-29 21:53:24] {json.dumps({'timestamp': '', 'event': name, 'obj': body})}\n"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user("a" * 1024 + "..." + "b" * 1024)]},
        {"messages": [*[user("a")] * 1024, "...", *[user("b")] * 1024]},
        {"messages": [user([{"type": "text", "text": "é" * 1024 + "..." + "b" * 1024}])]},
        {"messages": [user("a")], "tools": [{"function": {"description": "a" * 1024 + "..." + "b" * 1024}}]},
    ],
)
def test_a_cut_shows_wherever_it_is(tmp_path, body):
    log = tmp_path / "host_0.log"
    log.write_text(event({"messages": [user("first")]}) + event(body))
    assert buckets(log) == ["first", "cut_by_log"]


def test_a_long_text_with_dots_is_not_cut(tmp_path):
    log = tmp_path / "host_0.log"
    whole = ["a" * 1025 + "..." + "b" * 1024, "a" * 1023 + "..." + "b" * 1025, "a" * 2051]
    log.write_text("".join(event({"messages": [user(text)]}) for text in whole))
    assert buckets(log) == whole


def test_text_logs_pickles_and_logs_without_bodies_are_refused_by_name(run, exact, tmp_path):
    wrong = {
        "text.log": ("[2026-11-29 21:53:24] Receive OpenAI: obj={'messages': []}\n", "SGLang's text format"),
        "bare.log": (event({"return_text_in_logprobs": True}, "request.received"), "no request with its body"),
        "dump.pkl": ("\x80", "a pickle is never opened"),
    }
    for name, (content, told) in wrong.items():
        (tmp_path / name).write_text(content)
        code, said = run("--dataset-name", tmp_path / name)
        assert code == 2 and said.count("\n") == 1 and told in said and "--log-requests-format json" in said
    assert not exact.asked


def test_lines_that_are_no_request_are_counted(run, exact, store, tmp_path):
    log = tmp_path / "host_0.log"
    odd = ["INFO: started\n", "\n", event(7), event({"messages": "text"}), event({"messages": []})]
    odd += [event({}, "unknown"), '[2026-11-29 21:53:24] {"event": "request.rec\n', "Finish: obj=GenerateReqInput()\n"]
    log.write_text(event({"messages": [user("first")]}) + "".join(odd))
    assert run("--dataset-name", log)[0] == 0
    counts = read_counts(store)
    assert (counts["rows"], counts["answers"], counts["not_a_request"], counts["text_log"]) == (8, 1, 6, 1)


def test_rotated_and_packed_logs_of_a_folder_are_read_whatever_the_hosts_are_called(tmp_path, jsonl):
    (tmp_path / "logs").mkdir()
    names = ["test-gpu_0.log", "test-gpu_0.log.2026-11-29_21", "dev_1.log", "train_0.log"]
    for name in names:
        (tmp_path / "logs" / name).write_text(event({"messages": [user(name)]}))
    (tmp_path / "logs" / "old_0.log.2026-11-29_20.gz").write_bytes(
        gzip.compress(event({"messages": [user("old")]}).encode())
    )
    lineage = open_source(str(tmp_path / "logs")).lineage
    (tmp_path / "logs" / "crash.pkl").write_bytes(b"\x80")
    assert open_source(str(tmp_path / "logs")).lineage == lineage  # a dump is not even opened for its hash
    assert sorted(buckets(tmp_path / "logs")) == sorted([*names, "old"])
    jsonl([{"prompt": "data"}], "logs/rows.jsonl")  # whose logs these are then, nobody knows
    assert [row["prompt"] for row in open_source(str(tmp_path / "logs")).rows()] == ["data"]


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


OWN = {"temperature": 0.7, "top_p": 0.9, "max_completion_tokens": 9000, "seed": 5, "stop": ["END"], "top_k": -1}
OTHER = {"stream": True, "n": 4, "logprobs": True, "user": "u", "rid": "r", "cache_salt": "s", "lora_path": "l"}
OTHER |= {"watermark": {"key": "k"}, "custom_logit_processor": "code", "presence_penalty": 0.0, "min_tokens": 0}


def test_a_requests_own_sampling_is_kept_where_that_is_asked_for(run, exact, store, jsonl):
    body = {"messages": [user("a")], **OWN, **OTHER, "chat_template_kwargs": {"thinking": True, "x": 1}}
    lines = [{"custom_id": "1", "body": body}, {"custom_id": "2", "body": {"messages": [user("b")], "max_tokens": 7}}]
    template = ["--chat-template-kwargs", '{"thinking": false}']
    assert run("--dataset-name", jsonl(lines), "--keep-sampling", *template)[0] == 0
    first, second = (its.body for its in sorted(exact.asked, key=lambda its: its.messages[0]["content"]))
    fixed = {"model": "stub-model", "return_token_ids": True}
    its = {"messages": [user("a")], "temperature": 0.7, "top_p": 0.9, "max_tokens": 2048, "seed": 5, "stop": ["END"]}
    assert first == {**fixed, **its, "top_k": -1, "chat_template_kwargs": {"thinking": False, "x": 1}}
    rest = {"messages": [user("b")], "temperature": 0.0, "max_tokens": 7, "chat_template_kwargs": {"thinking": False}}
    assert second == {**fixed, **rest}
    assert read_run(store)["sampling"]["keep_sampling"] is True


NONSENSE = [
    {"temperature": "hot"},
    {"temperature": float("nan")},
    {"temperature": -0.1},
    {"temperature": [0.5]},
    {"top_p": -0.5},
    {"top_p": 0},
    {"top_p": 1.1},
    {"top_k": 0},
    {"top_k": 1.5},
    {"min_p": 2},
    {"frequency_penalty": 3},
    {"repetition_penalty": 0},
    {"max_tokens": -1},
    {"max_tokens": 0},
    {"max_completion_tokens": "many"},
    {"min_tokens": 9, "max_tokens": 8},
    {"seed": 2**63},
    {"seed": 0.5},
    {"stop": 5},
    {"stop": ["x"] * 33},
    {"stop_token_ids": "2"},
    {"logit_bias": {"a": 1}},
    {"logit_bias": [1]},
    {"regex": "a", "ebnf": "b"},
    {"reasoning_effort": "hard"},
    {"chat_template_kwargs": [1]},
    {"chat_template_kwargs": {"x": float("inf")}},
    {"response_format": "json"},
]


def test_nonsense_as_sampling_is_counted_and_never_sent(run, exact, store, jsonl):
    asked = [*NONSENSE, {"temperature": "0.5", "max_tokens": "5000"}, {"top_k": 1, "min_p": 0}]
    bodies = [{"messages": [user(str(number))], **own} for number, own in enumerate(asked)]
    assert (
        run("--dataset-name", jsonl([{"custom_id": "1", "body": body} for body in bodies]), "--keep-sampling")[0] == 0
    )
    assert read_counts(store)["bad_sampling"] == len(NONSENSE) and read_counts(store)["answers"] == 2
    sent = {its.messages[0]["content"]: its.body for its in exact.asked}
    assert sent.keys() == {str(len(NONSENSE)), str(len(NONSENSE) + 1)}
    text = sent[str(len(NONSENSE))]  # text of a number is one, for SGLang too; and --max-tokens stays the most
    assert (text["temperature"], text["max_tokens"]) == (0.5, 2048)


def test_without_kept_sampling_nonsense_is_nobodys_business(run, exact, store, jsonl):
    body = {"messages": [user("a")], "temperature": "hot"}
    assert run("--dataset-name", jsonl([{"custom_id": "1", "body": body}]))[0] == 0
    assert read_counts(store)["answers"] == 1


def test_kept_sampling_is_part_of_a_rows_id_and_other_sampling_is_not(run, exact, tmp_path, jsonl):
    lines = [{"custom_id": "", "body": {"messages": [user("a")], "temperature": t, "user": t}} for t in (0.1, 0.2, 0.1)]
    for keep, answers in ((["--keep-sampling"], 2), ([], 1)):
        output = tmp_path / f"run{answers}"
        assert run("--dataset-name", jsonl(lines), "--output", output, *keep)[0] == 0
        counts = read_counts(open_store(output))
        assert (counts["rows"], counts["answers"], counts["duplicate"]) == (3, answers, 3 - answers)


def test_without_requests_there_is_no_sampling_to_keep(run, stub, jsonl):
    code, said = run("--dataset-name", jsonl([{"prompt": "a"}]), "--keep-sampling")
    assert code == 2 and "rows.jsonl holds no requests" in said and not stub.asked


@pytest.fixture
def logs(tmp_path):
    """Three logs of two hosts, and one of another day."""
    for name in ("a/x_0.log", "a/x_0.log.2026-11-29_20", "b/y_0.log", "b/y[0].log", "b/readme.md"):
        path = tmp_path / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(event({"messages": [user(name)]}))
    return tmp_path / "logs"


def test_a_pattern_counts_only_where_the_option_says_so(logs, run, exact):
    assert sorted(buckets(f"{logs}/*/*.log", pattern=True)) == ["a/x_0.log", "b/y[0].log", "b/y_0.log"]
    assert buckets(f"{logs}/b/y[0].log", pattern=False) == ["b/y[0].log"]
    (logs / "b" / "y0.log").write_text(event({"messages": [user("b/y0.log")]}))
    assert buckets(f"{logs}/b/y[0].log", pattern=True) == ["b/y0.log"]
    with pytest.raises(BadInput, match="no such file"):
        open_source(f"{logs}/*/*.log")
    code, said = run("--dataset-name", f"{logs}/*/*.log*", "--glob")
    assert code == 0 and "rows 5, answers 5" in said


def test_a_pattern_without_a_match_or_with_other_files_is_refused(logs):
    for pattern, told in (("*/*.txt", "no file matches"), ("b/*", "readme.md: unknown kind")):
        with pytest.raises(BadInput, match=told):
            open_source(f"{logs}/{pattern}", pattern=True)


def test_the_lineage_of_a_pattern_names_no_path_of_this_machine_and_follows_its_files(logs, tmp_path):
    first = open_source(f"{logs}/*/*.log", pattern=True).lineage
    assert first["name"] == "*/*.log"
    moved = shutil.copytree(logs, tmp_path / "moved")
    assert open_source(f"{moved}/*/*.log", pattern=True).lineage == first
    (moved / "a" / "z_0.log").write_text(event({"messages": [user("new")]}))
    assert open_source(f"{moved}/*/*.log", pattern=True).lineage["sha256"] != first["sha256"]


def test_logs_in_an_object_store_are_read_by_a_pattern(logs, run, exact, bucket, store):
    for path in logs.rglob("*_0.log*"):
        boto3.client("s3").upload_file(str(path), bucket, f"traffic/{path.relative_to(logs)}")
    code, said = run("--dataset-name", f"s3://{bucket}/traffic/*/*_0.log*", "--glob")
    assert code == 0 and "answers 3" in said
    assert read_run(store)["dataset"]["name"] == "*/*_0.log*"
    code, said = run("--dataset-name", f"s3://{bucket}/traffic/*.log", "--glob", "--output", "other")
    assert code == 2 and "no object matches" in said
    code, said = run("--dataset-name", f"s3://{bucket}/traffic/*/*_0.log*", "--output", "other")
    assert code == 2 and "no such object" in said


def test_a_log_may_begin_with_what_is_none_of_its_business(run, exact, store, tmp_path):
    log = tmp_path / "host_0.log"
    noise = "".join(f"[2026-11-29 21:53:24] INFO: line {number}\n" for number in range(300))
    log.write_text(noise + event({"messages": [user("asked")]}) * 300 + event({"messages": [user("too")]}))
    assert run("--dataset-name", log)[0] == 0
    counts = read_counts(store)
    assert (counts["answers"], counts["duplicate"], counts["not_a_request"]) == (2, 299, 300)


def test_a_log_that_is_nearly_all_cut_ends_with_2_and_says_how_to_log(run, exact, tmp_path):
    log = tmp_path / "host_0.log"
    cut = [f"{number:04}" + "a" * 1020 + "..." + "b" * 1024 for number in range(150)]
    log.write_text("".join(event({"messages": [user(text)]}) for text in ["first", *cut]))
    code, said = run("--dataset-name", log)
    assert code == 2 and "rejected as cut_by_log" in said and "--log-requests-level 3" in said


def test_a_request_with_tools_keeps_its_choice_of_them_where_that_is_asked_for(run, exact, jsonl):
    tools = [{"type": "function", "function": {"name": "f"}}]
    bodies = [{"messages": [user("a")], "tools": tools, "tool_choice": "required"}, {"messages": [user("b")]}]
    rows = jsonl([{"custom_id": "1", "body": {**body, "parallel_tool_calls": False}} for body in bodies])
    for options, choices in (([], ["auto", None]), (["--keep-sampling"], ["required", None])):
        exact.asked.clear()
        assert run("--dataset-name", rows, *options, "--overwrite")[0] == 0
        said = sorted((its.body for its in exact.asked), key=lambda body: body["messages"][0]["content"])
        assert [body.get("tool_choice") for body in said] == choices


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


def test_a_key_that_climbs_out_of_its_folder_is_no_match(bucket):
    for key in ("logs/../host_0.log", "logs/a/host_0.log"):
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=b"{}")
    assert stored_files(f"s3://{bucket}/logs/*/host_0.log")[1] == ["a/host_0.log"]


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

"""The whole step in this process: what ends up in the run, and what each end looks like from outside."""

import io
import json
from collections import Counter

import pytest

from spec.conversations import parts
from spec.conversations.lineage import read_run
from spec.conversations.shards import read_answers, read_counts
from tests.stub_server import Reply, answer_to, too_long


def chat(*prompts):
    said = [("system", "be brief")]
    for prompt in prompts:
        said += [("user", prompt), ("assistant", f"THEIRS to {prompt}")]
    return {"messages": [{"role": role, "content": content} for role, content in said]}


CHATS = [chat(f"question {number % 30}", "and then?") for number in range(40)]


def refused(outcome, *words):
    """An exit 2 says one line, after progress if any."""
    code, said = outcome
    assert code == 2, said
    (line,) = (line for line in said.splitlines() if not line.startswith("{"))
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


def test_every_row_is_answered_by_the_target_and_by_nothing_else(run, stub, jsonl, store):
    code, said = run("--dataset-name", jsonl(CHATS))
    assert code == 0 and "shard 0/1 done: rows 40, answers 40" in said
    answers = list(read_answers(store))
    assert Counter(row["messages"][1]["content"] for row in answers) == Counter(
        row["messages"][1]["content"] for row in CHATS
    )
    for row in answers:
        first, second = row["messages"][2]["content"], row["messages"][4]["content"]
        assert first == answer_to(row["messages"][:2])
        assert second == answer_to(row["messages"][:4])
    assert "THEIRS" not in json.dumps([asked.body for asked in stub.asked])
    assert len({row["id"] for row in answers}) == 40
    assert sum(row["id"].endswith("-1") for row in answers) == 10


def test_every_row_ends_as_an_answer_or_in_a_named_bucket(run, stub, jsonl, store):
    special = {
        "long": too_long(),
        "cut": Reply("and so", finish_reason="length"),
        "mute": Reply(""),
        "odd": Reply(status=400, error="template says no"),
    }
    stub.behave = lambda body: special.get(body["messages"][-1]["content"])
    rows = [{"prompt": prompt} for prompt in ("long", "cut", "mute", "odd", "", "fine", "good")]
    code, _ = run("--dataset-name", jsonl(rows))
    assert code == 0
    counts = read_counts(store)
    assert counts.pop("prompt_tokens") == 2 and counts.pop("completion_tokens") == 6 and counts.pop("exact") == 0
    buckets = dict.fromkeys(("too_long", "truncated", "empty", "refused_by_server", "no_prompt"), 1)
    assert counts == {"rows": 7, "answers": 2, **buckets}


def test_lineage_says_who_answered_what_and_how(run, jsonl, store):
    options = ("--temperature", 0.5, "--max-tokens", 64, "--seed", 3, "--limit", 5)
    run("--dataset-name", jsonl(CHATS), *options, "--chat-template-kwargs", '{"enable_thinking": false}')
    lineage = read_run(store)
    assert lineage["target"] == {"model": "stub-model", "revision": None}
    assert lineage["dataset"]["name"] == "rows.jsonl" and lineage["dataset"]["limit"] == 5
    assert lineage["sampling"] == {
        "temperature": 0.5,
        "max_tokens": 64,
        "seed": 3,
        "chat_template_kwargs": {"enable_thinking": False},
        "keep_truncated": False,
    }
    assert lineage["versions"]["server"] == "sglang 0.5.23"


def test_done_is_done_also_without_the_server(run, stub, jsonl):
    run("--dataset-name", jsonl(CHATS))
    stub.stop()
    code, said = run("--dataset-name", jsonl(CHATS))
    assert code == 0 and "already done: rows 40" in said


def test_shards_share_out_the_rows_and_the_run(run, stub, jsonl, store):
    rows = jsonl([*CHATS, *CHATS])  # duplicates go where their twins go
    assert run("--dataset-name", rows, "--shard", "1/2")[0] == 0
    assert 0 < len(stub.asked) < 160
    refused_read = pytest.raises(Exception, match="shards missing: 0/2")
    with refused_read:
        next(read_answers(store))
    assert run("--dataset-name", rows, "--shard", "0/2")[0] == 0
    assert len(stub.asked) == 160  # 80 rows of two turns
    assert len({row["id"] for row in read_answers(store)}) == 80


def test_the_limit_counts_rows_of_the_source_not_of_the_shard(run, jsonl, store):
    for shard in ("0/2", "1/2"):
        assert run("--dataset-name", jsonl(CHATS), "--limit", 10, "--shard", shard)[0] == 0
    assert read_counts(store)["rows"] == 10


def test_another_run_is_not_mixed_into_this_one(run, stub, jsonl):
    run("--dataset-name", jsonl(CHATS))
    refused(run("--dataset-name", jsonl(CHATS), "--temperature", 1), "sampling.temperature: 0.0 there, 1.0 asked")
    refused(run("--dataset-name", jsonl(CHATS[1:])), "dataset.sha256")
    refused(run("--dataset-name", jsonl(CHATS), "--shard", "0/2"), "holds shards of 1", "--shard I/1")
    stub.model = "another"
    refused(run("--dataset-name", jsonl(CHATS), "--model", "another"), "target.model: 'stub-model' there")


def test_overwrite_replaces_what_other_settings_made_and_only_that(run, stub, jsonl, store):
    rows = jsonl(CHATS)
    for shard in ("0/2", "1/2"):
        run("--dataset-name", rows, "--shard", shard)
    assert run("--dataset-name", rows, "--temperature", 1, "--overwrite", "--shard", "0/2")[0] == 0
    with pytest.raises(Exception, match="different settings"):
        next(read_answers(store))
    refused(run("--dataset-name", rows, "--temperature", 1, "--shard", "1/2"), "temperature")
    assert run("--dataset-name", rows, "--temperature", 1, "--overwrite")[0] == 0  # one shard instead of two
    assert read_counts(store)["rows"] == 40
    asked = len(stub.asked)
    assert run("--dataset-name", rows, "--temperature", 1, "--overwrite")[0] == 0
    assert len(stub.asked) == asked


def test_rows_of_other_settings_are_not_taken_up(run, stub, jsonl, store):
    """Shard 0 is replaced while shard 1, of the old settings, is half done: shard 1 begins anew."""
    rows = jsonl(CHATS)
    stub.behave = lambda body: Reply(status=404) if len(stub.asked) > 10 else None
    run("--dataset-name", rows, "--shard", "1/2", "--patience", 1)
    assert store.list("answers/shard-00001-of-00002")
    stub.behave = lambda body: None
    assert run("--dataset-name", rows, "--shard", "0/2", "--temperature", 1, "--overwrite")[0] == 0
    assert run("--dataset-name", rows, "--shard", "1/2", "--temperature", 1)[0] == 0
    assert len(list(read_answers(store))) == 40
    temperatures = Counter(asked.body["temperature"] for asked in stub.asked)
    assert temperatures[1.0] == 80


def test_a_server_that_refuses_everything_ends_the_step_and_spends_no_row(run, stub, jsonl, store):
    stub.behave = lambda body: Reply(status=400, error="template says no")
    refused(run("--dataset-name", jsonl(CHATS)), "refused all of the first 40 rows", "template says no", "--max-tokens")
    stub.behave = lambda body: None
    assert run("--dataset-name", jsonl(CHATS))[0] == 0
    assert read_counts(store)["answers"] == 40


def test_a_wrong_url_ends_the_step(run, stub, jsonl):
    refused(run("--dataset-name", jsonl(CHATS), "--base-url", f"{stub.url}/nowhere"), "404", "--base-url")
    refused(run("--dataset-name", jsonl(CHATS), "--base-url", "localhost:30000"), "not a URL")
    refused(run("--dataset-name", jsonl(CHATS), "--model", "llama"), "serves stub-model, not llama")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shard", "2/2"], ["--shard 2/2"]),
        (["--chat-template-kwargs", "{"], ["--chat-template-kwargs", "not JSON"]),
        (["--chat-template-kwargs", "[]"], ["a JSON object"]),
        (["--column", "answer"], ["no column 'answer'; its columns: messages"]),
        (["--dataset-split", "test"], ["no split 'test'"]),
        (["--limit", "0"], ["--limit 0"]),
        (["--output", "gs://bucket/run"], ["only directories and s3://"]),
        (["--output", "rows.jsonl"], ["a file"]),
    ],
)
def test_a_wrong_option_is_one_line(run, stub, jsonl, options, words):
    refused(run("--dataset-name", jsonl(CHATS), *options), *words)
    assert not stub.asked


@pytest.mark.parametrize(
    ("content", "word"),
    [("", "empty file"), ('{"prom', "line 1 is not JSON"), ('{"blob": 1}', "columns: blob")],
)
def test_a_wrong_file_is_one_line(run, stub, tmp_path, content, word):
    (tmp_path / "wrong.jsonl").write_text(content)
    refused(run("--dataset-name", tmp_path / "wrong.jsonl"), "wrong.jsonl" if word != "columns: blob" else "", word)
    assert not stub.asked


def test_a_missing_bucket_is_one_line_before_anything_is_asked(run, stub, jsonl, bucket):
    refused(run("--dataset-name", jsonl(CHATS), "--output", f"s3://{bucket}-not/run"), "NoSuchBucket")
    assert not stub.asked


def test_a_full_disk_is_told_and_passes(run, jsonl, store, monkeypatch):
    with monkeypatch.context() as patch:
        real = io.FileIO
        patch.setattr(parts.io, "FileIO", lambda path, mode: real("/dev/full", "w"))
        code, said = run("--dataset-name", jsonl(CHATS))
    assert code == 75 and "no space left" in said and "Traceback" not in said
    assert run("--dataset-name", jsonl(CHATS))[0] == 0
    assert read_counts(store)["rows"] == 40


def test_a_line_that_is_no_row_is_named_with_its_folder(run, jsonl, store):
    run("--dataset-name", jsonl(CHATS))
    store.delete("answers/shard-00000-of-00001/shard.json")
    store.write(f"{store.list('answers')[0].key.rpartition('.')[0]}-x.jsonl", b"no row\n")
    refused(run("--dataset-name", jsonl(CHATS)), f"{store.url}/answers/shard-00000-of-00001", "b'no row")


def test_without_a_name_the_run_is_called_after_the_dataset(run, jsonl, tmp_path):
    rows = jsonl(CHATS, "my chats.jsonl")
    code, _ = run("--dataset-name", rows, "--output", "")
    assert code == 0
    assert (tmp_path / "runs" / "my-chats" / "run.json").is_file()


def test_elsewhere_than_on_a_terminal_progress_is_json(run, stub, jsonl):
    stub.behave = lambda body: Reply(finish_reason="length") if body["messages"][1]["content"].endswith("1") else None
    _, said = run("--dataset-name", jsonl(CHATS))
    line = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert (line["answers"], line["of"], line["rejects"]) == (40, 40, {"truncated": 4})
    assert line["answers_per_s"] > 0 and line["tokens_per_s"] > 0
    assert {"in_flight", "seconds_left"} <= line.keys()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--temperature", "inf"], "--temperature inf"),
        (["--temperature", "nan"], "--temperature"),
        (["--chat-template-kwargs", '{"x": NaN}'], '--chat-template-kwargs {"x": NaN}: not JSON'),
        (["--dataset-name", ""], "--dataset-name: none is named"),
        (["--dataset-name", "s3://bucket"], "s3://bucket: no file is named"),
        (["--dataset-name", "s3://bucket/folder/"], "s3://bucket/folder/: no file is named"),
    ],
)
def test_what_no_server_and_no_store_takes_is_refused_before_it_is_asked(run, stub, jsonl, options, told):
    named = [] if "--dataset-name" in options else ["--dataset-name", jsonl(CHATS)]
    refused(run(*named, *options), told)
    assert not stub.asked


def test_progress_counts_the_answers_that_are_due_and_not_the_rows(run, jsonl):
    _, said = run("--dataset-name", jsonl(CHATS[:5]), "--samples", 3, "--temperature", 1)
    line = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert (line["answers"], line["of"]) == (15, 15) and "rows" not in line


def test_a_source_of_rows_that_nobody_can_answer_is_refused_at_its_first_hundred(run, stub, jsonl, store):
    picture = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]}
    rows = [picture | {"number": number} for number in range(400)]
    refused(run("--dataset-name", jsonl(rows)), "100 of the first 100 rows are rejected as image", "--column")
    assert not stub.asked
    assert not [entry for entry in store.list("answers") if entry.size]


def test_a_source_that_ends_without_any_answer_is_refused_by_its_main_reason(run, stub, jsonl):
    embeddings = [{"custom_id": str(n), "body": {"model": "m", "input": f"text {n}"}} for n in range(120)]
    refused(run("--dataset-name", jsonl(embeddings)), "no row is answered", "not_chat")


def test_rows_that_the_user_left_out_are_no_fault(run, stub, jsonl):
    path = jsonl(CHATS)
    code, said = run("--dataset-name", path, "--leave-out", path)
    assert code == 0 and "answers 0" in said


def test_a_row_without_the_column_that_is_read_is_counted_by_that_name(run, stub, jsonl):
    code, said = run("--dataset-name", jsonl([*CHATS, {"prompt": "hello"}, {"messages": None, "prompt": "hello"}]))
    assert code == 0 and "no_column 1" in said and "no_prompt 1" in said


def test_a_token_that_no_vocabulary_has_is_the_servers_fault_and_said_at_once(run, stub, jsonl, monkeypatch):
    stub.ids = True
    monkeypatch.setattr("tests.stub_server.END", 10**9)
    refused(run("--dataset-name", jsonl(CHATS)), "no vocabulary has", "1000000000")


@pytest.mark.parametrize("option", ["--dataset-name", "--output"])
@pytest.mark.parametrize("url", ["s3://bob:SECRET@bucket/rows.jsonl", "https://bob:SECRET@host/rows.jsonl"])
def test_a_secret_in_a_url_is_refused_unseen(run, stub, jsonl, option, url):
    given = {"--dataset-name": jsonl(CHATS)} | {option: url}
    code, said = run(*(word for pair in given.items() for word in pair))
    assert code == 2 and "SECRET" not in said and "bob" not in said, said

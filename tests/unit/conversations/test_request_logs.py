"""SGLang's logs as rows (logs/ holds lines of 0.5.23): which of their lines are requests, and which files are read."""

import gzip
import json
import shutil
from pathlib import Path

import boto3
import pytest

from spec.conversations.lineage import read_run
from spec.conversations.patterns import stored_files
from spec.conversations.shards import read_answers, read_counts
from spec.conversations.sources import open_source
from spec.errors import BadInput
from tests.requested import asked, buckets, event, user

LOGS = Path(__file__).parent / "logs"


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


def test_a_key_that_climbs_out_of_its_folder_is_no_match(bucket):
    for key in ("logs/../host_0.log", "logs/a/host_0.log"):
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=b"{}")
    assert stored_files(f"s3://{bucket}/logs/*/host_0.log")[1] == ["a/host_0.log"]

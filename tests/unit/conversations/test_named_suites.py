"""Named suites read from local files as from the hub, as SpecForge's benchmarks ask them."""

import json

import pytest

from spec.conversations import suites
from spec.conversations.selection import select
from spec.conversations.suites import catalogue, place_of, read_suite
from spec.errors import BadInput


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_mt_bench_has_two_turns_under_either_name_of_its_column(tmp_path):
    for column in ("turns", "prompt"):
        path = lines(tmp_path / f"{column}.jsonl", [{column: [f"first {n}", f"second {n}"]} for n in range(90)])
        suite = read_suite(f"mt-bench={path}")
        assert len(suite.questions) == 80 and suite.questions[79].turns == ("first 79", "second 79")
        assert suite.questions[0].system.startswith("You are a helpful") and suite.max_new_tokens == 2048
        assert suite.lineage["name"] == "mt-bench" and len(suite.lineage["sha256"]) == 64


def test_gsm8k_is_plain_text_after_its_first_five_rows(tmp_path):
    rows = [{"question": f"How many {{{n}}}?", "answer": f"#### {n}"} for n in range(300)]
    suite = read_suite(f"gsm8k={lines(tmp_path / 'test.jsonl', rows)}")
    assert len(suite.questions) == 200 and suite.stop == ("Question", "Assistant:", "<|separator|>")
    plain = suite.questions[7].plain
    assert plain.startswith("Question: How many {0}?\nAnswer: #### 0\n\nQuestion: How many {1}?")
    assert plain.endswith("#### 4\n\nQuestion: How many {7}?\nAnswer:") and suite.questions[7].turns == (
        "How many {7}?",
    )


def test_math500_is_read_from_parquet_too(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"problem": ["x?", "y?"], "solution": ["a", "b"]}), tmp_path / "test.parquet")
    suite = read_suite(f"math500={tmp_path / 'test.parquet'}")
    assert [question.turns for question in suite.questions] == [("x?",), ("y?",)]


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("gsm8k", [{"prompt": "x"}], "not GSM8K: wanted a column question; its columns: prompt"),
        ("gsm8k", [{"question": "x"}], "not GSM8K: a row has no 'answer'"),
        ("mt-bench", [{"turns": [1]}], "turns is to hold text"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, name, rows, said):
    with pytest.raises(BadInput, match=said):
        read_suite(f"{name}={lines(tmp_path / 'rows.jsonl', rows)}")


def test_the_hub_is_asked_for_the_pinned_commit(monkeypatch):
    asked = {}

    def rows(name, **options):
        asked[name] = options
        return {"name": name}, iter([{"problem": "x?"}])

    monkeypatch.setattr(suites, "whole_rows", rows)
    assert read_suite("math500").questions[0].turns == ("x?",)
    ((name, options),) = asked.items()
    assert name == "HuggingFaceH4/MATH-500" and options["split"] == "test" and len(options["revision"]) == 40
    assert all(len(its["revision"]) == 40 for its in catalogue().values())


def test_a_name_that_is_neither_a_suite_nor_a_file_asks_no_hub():
    with pytest.raises(BadInput, match="--suite mtbench: no such file, and no suite: those are mt-bench, gsm8k"):
        read_suite("mtbench")


def test_where_a_suite_is_read_from_is_known_before_it_is_read():
    assert place_of("gsm8k") == catalogue()["gsm8k"]["dataset"] and place_of("gsm8k=s3://b/x.jsonl") == "s3://b/x.jsonl"
    assert place_of("s3://b/own.jsonl") == "s3://b/own.jsonl"
    assert place_of("humaneval") == ""  # the package is installed


def test_a_file_of_ones_own_keeps_its_turns_and_its_system_prompt(tmp_path):
    said = [("system", "Be kind."), ("user", "one"), ("assistant", "unused"), ("user", "two")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    suite = read_suite(str(lines(tmp_path / "my.own.jsonl", [row, {"messages": []}])))
    assert suite.name == "my" and len(suite.questions) == 1 and suite.prompts is None
    assert (suite.questions[0].turns, suite.questions[0].system) == (("one", "two"), "Be kind.")


def test_a_suite_is_left_out_of_training_by_name(tmp_path):
    path = lines(tmp_path / "test.jsonl", [{"question": "q  1", "answer": "a"}])
    suite, other = select(leave_out=[f"gsm8k={path}", "humaneval"]).suites
    assert suite.lineage["name"] == "gsm8k" and len(suite.prompts) == 1 and len(other.prompts) == 164

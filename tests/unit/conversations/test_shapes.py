"""Several files by one name, each of its own shape."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spec.conversations.lineage import read_run
from spec.conversations.rows import UNREADABLE, conversation_in, said_by_users
from spec.conversations.shapes import Read
from spec.conversations.shards import read_counts
from spec.conversations.sources import open_source
from spec.errors import BadInput
from spec.storage import open_store


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def several(tmp_path, jsonl):
    """A folder of files of four shapes, and two that hold nothing to ask."""
    folder = tmp_path / "several"
    folder.mkdir()
    jsonl([{"prompt": "What is rain?"}], "several/a.jsonl")
    jsonl([{"messages": user("What is snow?"), "prompt": None}], "several/b.jsonl")
    jsonl([{"conversations": [{"from": "human", "value": "What is hail?"}], "system": "Be brief."}], "several/c.jsonl")
    jsonl([{"custom_id": "1", "body": {"messages": user("What is fog?")}}], "several/d.jsonl")
    jsonl([{"label": 1}, {"label": 2}], "several/e.jsonl")
    pq.write_table(pa.table({"blob": ["x", "y", "z"]}), folder / "f.parquet")
    jsonl([{"prompt": "What is dew?"}], "several/g.jsonl")
    return folder


def outcome(read: Read) -> str:
    if UNREADABLE in read.row:
        return read.row[UNREADABLE][2]
    return "; ".join(said_by_users(conversation_in(read.row, read.column)))


WANTED = ["What is rain?", "What is snow?", "What is hail?", "What is fog?", *["no_column"] * 5, "What is dew?"]


@pytest.mark.parametrize("pattern", [False, True])
def test_the_column_is_each_files_own(several, pattern):
    source = open_source(f"{several}/*" if pattern else str(several), pattern=pattern)
    assert [outcome(read) for read in source.read()] == WANTED
    assert [read.is_request for read in source.read()].count(True) == 1
    assert source.lineage["column"] == ["prompt", "messages", "conversations", None]


def test_files_that_are_alike_and_a_file_alone_have_the_lineage_they_had(several, jsonl):
    for name in "bcdef":
        next(several.glob(f"{name}.*")).unlink()
    assert open_source(str(several)).lineage["column"] == "prompt"
    assert open_source(str(several / "a.jsonl")).lineage.keys() == {"name", "split", "sha256", "column", "limit"}


def test_rows_of_a_file_without_a_column_are_counted_and_the_others_answered(run, several, tmp_path, stub):
    (several / "0.jsonl").write_text("".join(json.dumps({"label": number}) + "\n" for number in range(150)))
    stub.ids = True
    for _ in range(2):
        code, said = run("--dataset-name", several)
        assert code == 0, said
    store = open_store(tmp_path / "run")
    counts = {name: read_counts(store)[name] for name in ("answers", "no_column", "rows")}
    assert counts == {"answers": 5, "no_column": 155, "rows": 160}
    assert len(stub.asked) == 5
    assert read_run(store)["dataset"]["requests"] is True


def test_a_column_that_is_named_is_that_of_every_file_that_has_it(several, jsonl):
    jsonl([{"ask": "What is ice?"}], "several/h.jsonl")
    source = open_source(str(several), column="ask")
    assert [outcome(read) for read in source.read()].count("no_column") == 10
    assert source.lineage["column"] == "ask"


def test_files_none_of_which_can_be_used_are_refused_by_the_first(several):
    for name in "abcdg":
        next(several.glob(f"{name}.*")).unlink()
    with pytest.raises(BadInput, match=r"several: e\.jsonl: no column that is known .* columns: label"):
        open_source(str(several))

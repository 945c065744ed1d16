"""Rows come out as they stand: judged by cases that users had, and by random files against what was written."""

import copy
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spec.conversations.ids import content_hash
from spec.conversations.rows import Reject, conversation_in, messages_in, turns_to_answer
from spec.conversations.sources import open_source
from spec.conversations.tools import content, has_tools, read_trace
from tests.unit.conversations import test_tools

FILES = int(os.environ.get("FUZZ_FILES", "150"))  # random files; the whole is FUZZ_FILES=10000
ODD = [None, 7, 1e300, 2**70, True, "", "odd", "\ud83d", "2024-01-01T00:00:00", [], ["text"], [None], [[[]]], {}]
ODD += [{"a": [1]}, {"role": "user"}, [{"role": 3}], [{"role": "user", "content": 7}], [{"type": "text", "text": "t"}]]


def chat(content):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "theirs"}]}


def asked(row, column):
    """What would be asked for a row, or the bucket that counts it; its id never fails."""
    conversation = conversation_in(row, column)
    assert len(content_hash(conversation)) == 32
    try:
        return turns_to_answer(conversation)
    except Reject as reject:
        return reject.bucket


def user(prompt):
    return [[{"role": "user", "content": prompt}]]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(str(path))


PART = {"type": "text", "text": "What is late?"}


@pytest.mark.parametrize(("last", "outcome"), [([PART], user([PART])), (7, "not_text"), (None, "not_text")])
def test_a_late_odd_row_changes_no_prompt(tmp_path, last, outcome):
    prompts = [f"q{number} " + "x" * 2000 for number in range(6000)]  # 12 MB: more than a table's reader takes at once
    source = write(tmp_path / "late.jsonl", [*map(chat, prompts), chat(last)])
    assert source.total == 6001
    assert [asked(row, "messages") for row in source.rows()] == [*map(user, prompts), outcome]


@pytest.mark.parametrize(
    ("first", "last"), [(None, "rare"), (1, "a7"), ({"a": 1}, {"b": [2]}), ("2024-01-01", "never")]
)
def test_a_column_that_nobody_reads_may_hold_anything(tmp_path, first, last):
    rows = [{"prompt": f"q{number} " + "x" * 2000, "tag": first} for number in range(6000)]
    source = write(tmp_path / "late.jsonl", [*rows, {"prompt": "late", "tag": last}])
    assert [row["prompt"] for row in source.rows()] == [*(row["prompt"] for row in rows), "late"]


@pytest.mark.parametrize("line", [b'{"prompt": ' + b"[" * 950 + b"]" * 950 + b"}", b"[" * 9999, b"9" * 5000, b"\x00"])
def test_a_line_that_no_parser_takes_is_one_odd_row_with_an_id_of_its_content(tmp_path, line):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}\n' + line)
    first, odd, second, again = list(open_source(str(path)).rows())
    assert asked(odd, "prompt") == "unreadable" and odd == again
    assert (first, second) == ({"prompt": "a"}, {"prompt": "b"})


def bytes_as_text(values):
    """A column of type text whose bytes are `values`, whatever they are: there are writers that do not look."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


def tables(folder, columns):
    """The same rows as Parquet and in Arrow's two forms."""
    table = pa.table(columns)
    pq.write_table(table, folder / "a.parquet")
    for name, writer in (("stream.arrow", pa.ipc.new_stream), ("file.arrow", pa.ipc.new_file)):
        with writer(folder / name, table.schema) as file:
            file.write_table(table)
    return [open_source(str(folder / name)) for name in ("a.parquet", "stream.arrow", "file.arrow")]


def test_text_of_a_table_that_is_no_utf8_is_one_odd_row(tmp_path):
    prompts = bytes_as_text([b"good", b"bad \xff", None, b"bad \xfe"])
    for source in tables(tmp_path, {"prompt": prompts, "image": bytes_as_text([b"\xff"] * 4)}):
        rows = list(source.rows())
        assert all(row.keys() == {"prompt"} for row in rows)  # the image was never decoded
        assert [asked(row, "prompt") for row in rows] == [user("good"), "not_text", "no_prompt", "not_text"]
        assert rows[1] != rows[3]


def random_file(rng):
    """A column, the lines of a file, and for each the prompt that must be asked, or None where the row is odd."""
    column = rng.choice(["prompt", "messages", "conversations"])
    others = rng.sample(["id", "tag", "image", "meta", "created"], rng.randrange(4))
    lines, prompts = [], []
    for number in range(rng.randrange(1, 12)):
        prompt = f"q{number} " + rng.choice(["", "ü", "\n", '"quoted"', "\\", "[1]", "{", "0", "\U0001f600"])
        said = {
            "prompt": prompt,
            "messages": [{"role": rng.choice(["user", "User"]), "content": prompt}],
            "conversations": [{"from": "human", "value": prompt}],
        }
        row = {column: said[column]} | {name: rng.choice(ODD) for name in others}
        kind = rng.random() if number else 0.5  # the first row is whole: it decides the column
        if kind < 0.3:
            row[column] = rng.choice(ODD)
        elif kind < 0.4:
            del row[column]
        line = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode(errors="backslashreplace")
        if kind > 0.85:
            line = rng.choice([line[: rng.randrange(1, len(line))], b"\xff" + line, b"[]", b"nul", b"{" * 900])
        lines.append(line)
        prompts.append(prompt if 0.4 <= kind <= 0.85 else None)
    return column, lines, prompts


def test_no_random_file_ends_in_a_traceback_and_no_odd_row_changes_its_neighbour(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "random.jsonl"
    for _ in range(FILES):
        column, lines, prompts = random_file(rng)
        path.write_bytes(b"\n".join(lines))
        source = open_source(str(path))
        outcomes = [asked(row, column) for row in source.rows()]
        assert source.column == column and len(outcomes) == len(lines) == source.total
        for outcome, prompt in zip(outcomes, prompts, strict=True):
            assert prompt is None or outcome == user(prompt)


def test_no_random_table_ends_in_a_traceback_and_no_odd_row_changes_its_neighbour(tmp_path):
    rng = random.Random(1)
    for _ in range(FILES // 10):
        raw = [rng.choice([b"good", b"\xff\xfe", None, b"", b"\xed\xa0\xbd"]) for _ in range(rng.randrange(1, 600))]
        never = pa.array([2**55] * len(raw), pa.timestamp("ms"))  # what no calendar has
        for source in tables(tmp_path, {"prompt": bytes_as_text(raw), "system": never}):
            outcomes = [asked(row, "prompt") for row in source.rows()]
            assert [outcome == user("good") for outcome in outcomes] == [text == b"good" for text in raw]


def places_in(value, path=()):
    """The way to each value within a value, itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(its for name, inside in inner for its in places_in(inside, (*path, name)))]


def test_no_odd_value_anywhere_in_a_row_with_tools_ends_in_a_traceback():
    rng = random.Random(2)
    outcomes = set()
    for _ in range(FILES * 20):
        row = json.loads(json.dumps({"messages": test_tools.CHAT, "tools": [test_tools.WEATHER]}))
        for _ in range(rng.randint(1, 3)):
            *way, last = rng.choice(places_in(row)[1:])
            inside = row
            for step in way:
                inside = inside[step]
            inside[last] = copy.deepcopy(rng.choice(ODD))
        messages = messages_in(row, "messages")
        if not has_tools(row, messages):
            continue
        assert len(content_hash(content(row, messages))) == 32
        try:
            trace = read_trace(row, messages)
            json.dumps([trace.tools, trace.messages], ensure_ascii=False).encode()
            assert all(0 < place <= len(trace.messages) for place in trace.due)
            outcomes.add("sent")
        except Reject as reject:
            outcomes.add(reject.bucket)
    assert {"sent", "bad_tools", "bad_tool_call", "unknown_tool", "tool_without_call", "unknown_role"} <= outcomes

import gzip
import json
from types import SimpleNamespace

import datasets
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spec.conversations import sources
from spec.conversations.rows import UNREADABLE, Reject, conversation_in, turns_to_answer
from spec.conversations.sources import open_source
from spec.errors import BadInput, PassingFault

ROWS = [{"prompt": f"question {number}", "extra": number} for number in range(5)]
PROMPTS = [row["prompt"] for row in ROWS]


def prompts(source):
    return [row[source.column] for row in source.rows()]


def test_a_jsonl_file_is_read(jsonl):
    source = open_source(str(jsonl(ROWS)))
    assert prompts(source) == PROMPTS
    assert prompts(source) == PROMPTS  # again, from the first on
    assert source.total == 5
    assert source.lineage["name"] == "rows.jsonl"
    assert source.lineage["column"] == "prompt"


def test_parquet_arrow_and_saved_folders_are_read(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "splits")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for path in (tmp_path / "rows.parquet", tmp_path / "saved", tmp_path / "splits", arrow):
        assert prompts(open_source(str(path))) == PROMPTS
    assert open_source(str(tmp_path / "rows.parquet")).total == 5
    assert prompts(open_source(str(tmp_path / "splits"), split="test")) == PROMPTS[:1]


def test_a_folder_of_files_is_read(jsonl, tmp_path):
    (tmp_path / "data").mkdir()
    jsonl(ROWS).rename(tmp_path / "data" / "train.jsonl")
    assert prompts(open_source(str(tmp_path / "data"))) == PROMPTS


def test_a_limit_keeps_the_first_rows(jsonl):
    source = open_source(str(jsonl(ROWS)), limit=2)
    assert prompts(source) == PROMPTS[:2]
    assert source.total == 2
    assert source.lineage["limit"] == 2


def test_rows_whose_columns_differ_are_read(jsonl):
    mixed = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "name": "x"}]}, {"id": 3}]
    assert [row.get("messages") for row in open_source(str(jsonl(mixed))).rows()] == [
        [{"role": "user", "content": "a"}],
        [{"role": "user", "name": "x"}],
        None,
    ]


def test_lineage_follows_the_content_of_a_file(jsonl):
    first = open_source(str(jsonl(ROWS))).lineage["sha256"]
    assert first == open_source(str(jsonl(ROWS, "copy.jsonl"))).lineage["sha256"]
    assert first != open_source(str(jsonl(ROWS[1:]))).lineage["sha256"]


def wrong_file(tmp_path, name, content, **options):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        list(open_source(str(path), **options).rows())
    return str(caught.value)


def test_a_line_that_was_cut_short_is_one_row_and_its_neighbours_are_whole(tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in ROWS).encode()[:-4])
    *whole, last = open_source(str(path)).rows()
    assert whole == ROWS[:4]
    assert "not JSON" in last[UNREADABLE][0] and "line 5" not in last[UNREADABLE][0]  # of which its id is made


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.jsonl", b"", "empty file"),
        ("blank.jsonl", b"\n\n", "no rows"),
        ("text.jsonl", b"hello\n", "line 1 is not JSON"),
        ("lists.jsonl", b'["a"]\n', "line 1 is not a JSON object"),
        ("bytes.jsonl", b'{"prompt": "\xff\xfe"}\n', "line 1 is not JSON"),
        ("empty.parquet", b"", "empty file"),
        ("broken.parquet", b"PAR1, and then nothing", "cannot be read"),
        ("broken.arrow", b"nothing of the kind", "cannot be read"),
        ("rows.csv", b"prompt\nhello\n", "unknown kind of file; wanted .jsonl"),
        ("columns.jsonl", b'{"blob": 1}\n', "columns: blob; wanted: messages"),
        ("none.json", b"[]", "no rows|cannot be read"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused(tmp_path, name, content, told):
    message = wrong_file(tmp_path, name, content)
    assert any(part in message for part in told.split("|")), message
    assert "\n" not in message and len(message) < 500


def test_a_wrong_split_is_refused(tmp_path):
    assert "no split 'test'" in wrong_file(tmp_path, "rows.jsonl", b'{"prompt": "a"}\n', split="test")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(BadInput, match="no split 'tset'; it has train"):
        open_source(str(tmp_path / "splits"), split="tset")


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path):
    for name in (str(tmp_path / "rows.jsonl"), "./rows", "rows.parquet"):
        with pytest.raises(BadInput, match="no such file"):
            open_source(name)


def test_a_limit_below_one_is_refused(jsonl):
    with pytest.raises(BadInput, match="--limit 0"):
        open_source(str(jsonl(ROWS)), limit=0)


class FakeHub:
    """What `_hub` asks: the commit behind a name, then the rows at that commit."""

    def __init__(self, monkeypatch, error=None):
        self.calls = []
        self.error = error
        monkeypatch.setattr(sources, "HfApi", lambda: self)
        monkeypatch.setattr(sources.datasets, "load_dataset", self.load_dataset)
        monkeypatch.setattr(sources.datasets, "load_dataset_builder", self.load_dataset_builder)
        monkeypatch.setattr(sources, "HfFileSystem", lambda: type("Files", (), {"open": staticmethod(open)}))
        self.files = {}
        monkeypatch.setattr(sources.datasets.config, "HF_HUB_OFFLINE", False)

    def dataset_info(self, name, revision):
        if self.error:
            raise self.error
        return type("Info", (), {"sha": revision or "c0ffee"})()

    def load_dataset_builder(self, name, config, revision):
        config = SimpleNamespace(data_files=self.files)
        return SimpleNamespace(info=datasets.DatasetInfo(), config=config)

    def load_dataset(self, *arguments, **options):
        self.calls.append((arguments, options))
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()


def test_a_hub_dataset_is_pinned_to_the_commit_it_has_now(monkeypatch):
    hub = FakeHub(monkeypatch)
    source = open_source("org/chats", split="train_sft")
    assert prompts(source) == PROMPTS
    assert hub.calls == [(("org/chats", None), {"split": "train_sft", "revision": "c0ffee", "streaming": True})]
    assert source.lineage["revision"] == "c0ffee"
    assert open_source("org/chats", revision="abc").lineage["revision"] == "abc"


def test_a_hub_datasets_files_are_read_as_files_are(monkeypatch, jsonl, tmp_path):
    hub = FakeHub(monkeypatch)
    odd = [{"prompt": "a"}, {"prompt": ["a part"]}, {"prompt": "b"}]
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(jsonl(odd).read_bytes()))
    for path, rows in ((jsonl(odd), [row["prompt"] for row in odd]), (tmp_path / "rows.parquet", PROMPTS)):
        hub.files = {"train": [str(path)]}
        assert prompts(open_source("org/chats")) == rows
    hub.files = {"train": [str(packed), str(packed)]}
    assert list(open_source("org/chats").rows()) == [*odd, *odd]
    assert hub.calls == []  # `datasets` would have typed the rows by column


def test_a_packed_file_that_was_cut_short_is_refused(tmp_path):
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS * 99).encode())
    assert "damaged" in wrong_file(tmp_path, "rows.jsonl.gz", packed[: len(packed) // 2])
    assert "damaged" in wrong_file(tmp_path, "rows.jsonl.gz", b"no gzip at all")


def answered(status):
    request = httpx.Request("GET", "http://hub")
    return sources.HfHubHTTPError("no", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered(404), BadInput),
        (answered(401), BadInput),
        (answered(429), PassingFault),
        (answered(503), PassingFault),
        (ConnectionError("no route"), PassingFault),
        (httpx.ConnectError("no route"), PassingFault),
        (sources.DatasetNotFoundError("gated"), BadInput),
        (ValueError('Bad split: x. Available splits: ["train"]'), BadInput),
    ],
)
def test_the_hub_fails_for_good_or_for_now(monkeypatch, error, kind):
    FakeHub(monkeypatch, error)
    with pytest.raises(kind, match="org/chats"):
        open_source("org/chats")


def test_without_the_hub_a_name_of_it_is_refused(monkeypatch):
    monkeypatch.setattr(sources.datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE"):
        open_source("org/chats")


def chat(content, role="user"):
    return {"messages": [{"role": role, "content": content}, {"role": "assistant", "content": "THEIRS"}]}


@pytest.mark.parametrize("odd", [[{"type": "text", "text": "What is late?"}], 7, None, "\ud83d"])
def test_an_odd_row_far_behind_changes_no_neighbour(jsonl, odd):
    rows = [chat(f"q{number} {'x' * 2000}") for number in range(600)] + [chat(odd)]
    assert list(open_source(str(jsonl(rows))).rows()) == rows


def test_a_column_that_nobody_reads_may_hold_anything(jsonl):
    rows = [{"id": number, "tag": None, "prompt": f"q{number}"} for number in range(300)]
    rows += [{"id": "a7", "tag": {"rare": 1}, "prompt": "late"}]
    assert prompts(open_source(str(jsonl(rows)))) == [row["prompt"] for row in rows]


def test_a_text_that_is_none_in_parquet_or_arrow_is_one_row(tmp_path):
    texts = pa.array([b"good", b"\xff\xfe", b"fine"]).view(pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    table = pa.table({"prompt": texts, "unread": texts})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    for name in ("rows.parquet", "rows.arrow"):
        good, odd, fine = open_source(str(tmp_path / name)).rows()
        assert (good, fine) == ({"prompt": "good"}, {"prompt": "fine"})
        with pytest.raises(Reject, match="not_text"):
            asked(odd, "prompt")


@pytest.mark.parametrize("name", ["part[1]", "al*ne", "wh?t"])
def test_a_path_is_a_path_and_never_a_pattern(tmp_path, jsonl, name):
    for other in ("part1", "alone", "what"):
        jsonl([{"prompt": "wrong"}], f"{other}.jsonl")
    assert prompts(open_source(str(jsonl([{"prompt": "right"}], f"{name}.jsonl")))) == ["right"]
    (tmp_path / name).mkdir()
    jsonl([{"prompt": "folder"}], f"{name}/rows.jsonl")
    datasets.Dataset.from_list([{"prompt": "table"}]).to_parquet(tmp_path / f"{name}.parquet")
    assert prompts(open_source(str(tmp_path / name))) == ["folder"]
    assert prompts(open_source(str(tmp_path / f"{name}.parquet"))) == ["table"]


def asked(row, column="messages"):
    return [(said["role"], said["content"]) for turn in turns_to_answer(conversation_in(row, column)) for said in turn]


def test_messages_stored_as_json_text_are_messages():
    assert asked({"messages": json.dumps(chat("What is rain?")["messages"])}) == [("user", "What is rain?")]
    with pytest.raises(Reject, match="not_messages"):
        asked({"messages": "What is rain?"})


def test_a_system_column_is_sent_first_unless_the_conversation_has_its_own():
    assert asked({"system": "be brief", **chat("hi")}) == [("system", "be brief"), ("user", "hi")]
    assert asked({"system_prompt": "be brief", "question": "hi"}, "question")[0] == ("system", "be brief")
    own = {"system": "other", "messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]}
    assert asked(own) == [("system", "own"), ("user", "hi")]
    assert asked({"system": None, **chat("hi")}) == [("user", "hi")]


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nTHEIRS<|im_end|>",
        "### Human: What is rain?### Assistant: THEIRS### Human: And snow?### Assistant: THEIRS",
    ],
)
def test_whole_chats_in_a_column_of_text_are_taken_only_by_name(jsonl, text):
    rows = jsonl([{"text": text}])
    with pytest.raises(BadInput, match="whole chats.*--column text"):
        open_source(str(rows))
    assert open_source(str(rows), column="text").column == "text"


def test_parts_of_text_and_other_spellings_of_roles_are_read():
    parts = [{"type": "text", "text": "What"}, {"type": "text", "text": "is rain?"}]
    assert asked(chat(parts, "User")) == [("user", parts)]  # whether they are joined, and with what, the server knows

import json

import datasets
import httpx
import pytest

from spec.conversations import sources
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
    assert [row["messages"] for row in open_source(str(jsonl(mixed))).rows()] == [
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


def test_a_file_that_was_cut_short_is_refused_by_line(tmp_path):
    whole = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    assert "line 5 is not JSON" in wrong_file(tmp_path, "cut.jsonl", whole[:-4])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.jsonl", b"", "empty file"),
        ("blank.jsonl", b"\n\n", "only blank lines"),
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
        monkeypatch.setattr(sources.datasets.config, "HF_HUB_OFFLINE", False)

    def dataset_info(self, name, revision):
        if self.error:
            raise self.error
        return type("Info", (), {"sha": revision or "c0ffee"})()

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

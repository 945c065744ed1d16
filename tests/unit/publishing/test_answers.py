"""Answers as a data set: what is fetched is what was published, down to the counts."""

import json
from pathlib import Path

import datasets
import pytest

from spec.conversations.shards import find_shards, read_answers, read_counts, read_rows
from spec.errors import BadInput
from spec.publishing import answers as publish
from spec.publishing.answers import card, fetch
from spec.storage import open_store
from tests.hub import Hub
from tests.runs import RUN, add_answers, make_rows, row_id


def quiet(line: str) -> None:
    pass


@pytest.fixture
def run(tmp_path: Path):
    store = open_store(tmp_path / "run")
    add_answers(store)
    return store


def all_rows(store) -> list[dict]:
    return [row for shard, marker in find_shards(store).items() for row in read_rows(store, shard, marker)]


@pytest.mark.parametrize("place", ["directory", "s3", "hub"])
def test_rows_counts_and_lineage_come_back(run, place: str, tmp_path: Path, request: pytest.FixtureRequest):
    url = {"directory": str(tmp_path / "published"), "hub": "hf://ORG/answers"}.get(place)
    if place != "directory":
        fixture = request.getfixturevalue({"s3": "bucket", "hub": "hub"}[place])
        url = url or f"s3://{fixture}/answers"
    publish.publish(run, url, quiet)
    again = open_store(tmp_path / "again")
    fetch(url, again, say=quiet)

    assert all_rows(again) == all_rows(run)
    assert sorted(row["id"] for row in all_rows(again)) == sorted(row["id"] for row in make_rows())
    assert list(read_answers(again)) == list(read_answers(run))
    assert read_counts(again) == read_counts(run)
    assert json.loads(again.read("run.json")) == RUN
    for shard, marker in find_shards(again).items():
        assert marker.digest == find_shards(run)[shard].digest


def test_fetched_answers_can_be_published_again_as_the_same_version(run, tmp_path: Path):
    first = publish.publish(run, str(tmp_path / "published"), quiet)
    again = open_store(tmp_path / "again")
    fetch(str(tmp_path / "published"), again, say=quiet)
    tables = {name: file for name, file in first.files.items() if name.endswith(".parquet")}
    second = publish.publish(again, str(tmp_path / "elsewhere"), quiet)
    assert {name: file for name, file in second.files.items() if name.endswith(".parquet")} == tables


def test_what_is_published_follows_from_the_answers_alone(tmp_path: Path):
    rows = make_rows()
    versions = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        store = open_store(tmp_path / name)
        add_answers(store, list(order))
        version = publish.publish(store, str(tmp_path / f"published-{name}"), quiet)
        versions.append({k: f for k, f in version.files.items() if k.endswith(".parquet")})
    assert versions[0] == versions[1]


def test_any_tool_reads_the_tables(run, tmp_path: Path):
    version = publish.publish(run, str(tmp_path / "published"), quiet).version
    folder = tmp_path / "published" / "versions" / version
    # as `load_dataset("ORG/NAME")` does: the card's configurations say which files belong together
    loaded = datasets.load_dataset(str(folder), "default", split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["id"]) == sorted(row["id"] for row in make_rows() if "reject" not in row)
    rejects = datasets.load_dataset(str(folder), "rejects", split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rejects["id"]) == sorted(row["id"] for row in make_rows() if "reject" in row)


def test_an_unfinished_run_is_not_published(run, tmp_path: Path):
    run.delete("answers/shard-00001-of-00002/shard.json")
    with pytest.raises(BadInput, match="not finished"):
        publish.publish(run, str(tmp_path / "published"), quiet)
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize("damage", [b"", b'{"target": {"mod', b"[]", b"{}"])
def test_a_damaged_lineage_is_named(run, tmp_path: Path, damage: bytes):
    run.write("run.json", damage)
    with pytest.raises(BadInput, match="run.json: not"):
        publish.publish(run, str(tmp_path / "published"), quiet)


def test_damaged_answers_are_not_published(run, tmp_path: Path):
    path = Path(run.url) / "answers/shard-00001-of-00002/part-0.jsonl"
    path.write_text(path.read_text().replace("Answer", "Anwser"))
    with pytest.raises(BadInput, match="damaged"):
        publish.publish(run, str(tmp_path / "published"), quiet)


@pytest.mark.parametrize(
    "row",
    [
        {"id": row_id("x"), "messages": [{"role": "user", "content": "a", "mood": "b"}], "turns": []},
        {"id": row_id("x"), "messages": [], "turns": [], "extra": 1},
        {"id": row_id("x"), "messages": [{"role": "user", "content": 1}], "turns": []},
        {"id": row_id("x"), "reject": "empty", "detail": "", "messages": []},
        {"id": row_id("x"), "messages": [{"role": "user", "content": "\ud83d"}], "turns": []},
    ],
)
def test_a_row_that_the_tables_cannot_hold_is_refused_and_not_trimmed(tmp_path: Path, row: dict):
    with pytest.raises(BadInput, match=row_id("x")):
        publish._to_table("rejects" if "reject" in row else "data", [row])


def test_fetching_again_has_nothing_to_do_and_an_interrupted_fetch_goes_on(run, tmp_path: Path):
    publish.publish(run, str(tmp_path / "published"), quiet)
    again = open_store(tmp_path / "again")
    fetch(str(tmp_path / "published"), again, say=quiet)
    marker = tmp_path / "again/answers/shard-00000-of-00002/shard.json"
    before = marker.stat().st_mtime_ns
    other = tmp_path / "again/answers/shard-00001-of-00002/shard.json"
    other.unlink()
    fetch(str(tmp_path / "published"), again, say=quiet)
    assert marker.stat().st_mtime_ns == before
    assert all_rows(again) == all_rows(run)


def test_answers_are_not_mixed_into_another_run(run, tmp_path: Path):
    publish.publish(run, str(tmp_path / "published"), quiet)
    other = open_store(tmp_path / "other")
    other.write("run.json", json.dumps({**RUN, "target": {"model": "ORG/Other"}}).encode())
    with pytest.raises(BadInput, match="another run: target.model: 'ORG/Other' there"):
        fetch(str(tmp_path / "published"), other, say=quiet)
    assert other.list("answers") == []


def test_a_run_in_s3_is_published_and_fetched_there(bucket: str, run, tmp_path: Path):
    publish.publish(run, f"s3://{bucket}/answers", quiet)
    there = open_store(f"s3://{bucket}/run")
    fetch(f"s3://{bucket}/answers", there, say=quiet)
    assert all_rows(there) == all_rows(run)


def test_the_card_states_counts_and_origin(run):
    text = card(RUN, read_counts(run), 2)
    assert "ORG/Target-8B-Instruct" in text and "ORG/prompts" in text
    assert "40, of which 36 answered" in text
    assert "not answered: `too_long` | 2" in text
    assert "- n<1K" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("rows", "name"), [(0, "n<1K"), (1000, "1K<n<10K"), (207865, "100K<n<1M"), (2 * 10**9, "n>1B")]
)
def test_sizes_have_the_hubs_names(run, rows: int, name: str):
    assert f"- {name}\n" in card(RUN, read_counts(run) | {"rows": rows}, 2)


def test_the_hub_shows_a_dataset(hub: Hub, run):
    publish.publish(run, "hf://ORG/answers", quiet)
    files = hub.head("datasets/ORG/answers")
    assert {"README.md", "run.json", "shards.json", "data/train-00000-of-00002.parquet"} <= set(files)


def test_the_card_of_a_mix_has_its_shares():
    mix = [{"name": name, "sha256": "ab", "weight": 1, "share": 0.5} for name in ("a.jsonl", "b.log")]
    dataset = {"name": "a.jsonl + b.log", "limit": None, "mix": mix, "leave_out": [{"name": "suite", "sha256": "cd"}]}
    counts = {"rows": 2, "answers": 2, "prompt_tokens": 2, "completion_tokens": 2}
    text = card({**RUN, "dataset": dataset}, counts, 1)
    assert "\n| prompts | name `a.jsonl + b.log` |\n| 50.0% of the prompts | name `a.jsonl`, sha256 `ab`" in text
    assert "\n| left out | name `suite`, sha256 `cd` |\n" in text

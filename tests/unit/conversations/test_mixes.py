"""Several datasets in one run, each with its weight."""

from collections import Counter

import pytest

from spec.conversations.lineage import read_run
from spec.conversations.mixes import as_begun, named, opened
from spec.conversations.shards import read_answers, read_counts
from spec.errors import BadInput
from spec.storage import open_store


@pytest.fixture
def files(jsonl):
    """Datasets a, b and c of 60, 30 and 100 rows, each with another column."""
    sizes = {"a": ("prompt", 60), "b": ("question", 30), "c": ("messages", 100)}

    def rows(name, column, count):
        for number in range(count):
            text = f"{name}{number}"
            yield {column: [{"role": "user", "content": text}] if column == "messages" else text}

    return {name: jsonl(list(rows(name, *its)), f"{name}.jsonl") for name, its in sizes.items()}


def first_words(datasets, limit=None):
    with opened(datasets, pattern=False, limit=limit) as source:
        return (
            [its if isinstance(its := read.row[read.column], str) else its[0]["content"] for read in source.read()],
            source.lineage,
            source.total,
        )


def test_rows_come_in_turn_by_weight_until_a_dataset_ends(files):
    asked = named([str(files["a"]), str(files["b"])], "2 1")
    words, lineage, total = first_words(asked)
    assert words[:6] == ["a0", "a1", "b0", "a2", "a3", "b1"]
    assert Counter(word[0] for word in words) == {"a": 60, "b": 30} and total == 90
    assert first_words(asked)[0] == words
    assert lineage["name"] == "a.jsonl + b.jsonl" and [its["share"] for its in lineage["mix"]] == [0.666667, 0.333333]
    assert [its["weight"] for its in lineage["mix"]] == [2, 1] and all(its["sha256"] for its in lineage["mix"])


def test_at_any_row_each_dataset_has_its_share(files):
    weights = {"a": 0.5, "b": 0.2, "c": 1.3}
    words, _, total = first_words(named([str(files[name]) for name in weights], "0.5 0.2 1.3"))
    for row in range(1, len(words) + 1):
        taken = Counter(word[0] for word in words[:row])
        assert all(abs(taken[name] - row * weight / 2) < 1.5 for name, weight in weights.items())
    assert abs(len(words) - 100 * 2 / 1.3) < 3 and abs(len(words) - total) < 3  # c ends first
    words, _, total = first_words(named([str(files["a"]), str(files["b"])], "2 1"), limit=7)
    assert words[-1] == "a4" and len(words) == total == 7
    with pytest.raises(BadInput, match="--limit 0"):
        first_words(named([str(files["a"]), str(files["b"])], "2 1"), limit=0)


def test_a_mix_is_answered_once_whatever_ends_it(run, stub, files, tmp_path):
    names = ["--dataset-name", files["a"], "--dataset-name", files["c"], "--weights", "1 1"]
    for shard in ("0/2", "1/2"):
        assert run(*names, "--shard", shard)[0] == 0
    store = open_store(tmp_path / "run")
    before = {row["id"]: row["messages"][0]["content"] for row in read_answers(store)}
    assert Counter(word[0] for word in before.values()) == {"a": 60, "c": 60} and len(stub.asked) == 120
    (part,) = (entry.key for entry in store.list("answers/shard-00001-of-00002") if "/part-" in entry.key)
    lines = store.read(part).splitlines(keepends=True)
    store.write(part, b"".join(lines[: len(lines) // 2]))  # as a kill leaves it
    store.delete("answers/shard-00001-of-00002/shard.json")
    stub.asked.clear()
    assert run(*names, "--shard", "1/2")[0] == 0
    assert len(stub.asked) == len(lines) - len(lines) // 2
    assert {row["id"]: row["messages"][0]["content"] for row in read_answers(store)} == before
    code, said = run(*names[:-1], "2 1", "--shard", "0/2")
    assert code == 2 and "is another run: dataset.mix" in said


def test_a_request_in_a_mix_is_one_and_a_row_beside_it_is_a_row(run, stub, jsonl, tmp_path):
    stub.ids, stub.tokenizes = True, False
    chat = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    asked = jsonl([{"custom_id": "1", "body": {"messages": chat}}] * 2, "batch.jsonl")
    rows = jsonl([{"messages": chat}] * 2)
    names = ["--dataset-name", asked, "--dataset-name", rows, "--weights", "1 1", "--keep-sampling"]
    assert run(*names)[0] == 0
    store = open_store(tmp_path / "run")
    assert Counter(len(row["turns"]) for row in read_answers(store)) == {1: 1, 2: 2}
    assert read_counts(store)["duplicate"] == 1


def test_one_dataset_is_recorded_and_named_as_it_was_before_there_were_mixes(run, files, tmp_path):
    assert run("--dataset-name", files["a"], "--limit", 2, "--output", "")[0] == 0
    store = open_store(tmp_path / "runs" / "a")
    dataset = read_run(store)["dataset"]
    sha256 = dataset.pop("sha256")
    assert dataset == {"name": "a.jsonl", "split": "train", "column": "prompt", "limit": 2} and len(sha256) == 64
    sampling = {"temperature": 0.0, "max_tokens": 2048, "seed": None, "chat_template_kwargs": None}
    assert read_run(store)["sampling"] == {**sampling, "keep_truncated": False}
    ids = ["08bcffb4bbdc86d00dfa83599f9a3e14-0", "f36c8b7010acdc7f20bafd7cc1a37a2b-0"]
    assert sorted(row["id"] for row in read_answers(store)) == ids


@pytest.mark.parametrize(
    ("names", "weights", "told"),
    [
        (["a", "b"], "", "--weights is missing: 2 datasets want a weight each"),
        (["a", "b"], "1", "2 datasets want a weight each"),
        (["a"], "1 2", "1 datasets want a weight each"),
        (["a", "b"], "1 x", "x: not a number"),
        (["a", "b"], "1 0", "0: above 0"),
        (["a", "b"], "1 inf", "inf: above 0"),
        (["a", "a"], "1 1", "a is given twice"),
    ],
)
def test_weights_that_cannot_be_are_refused(names, weights, told):
    with pytest.raises(BadInput, match=told):
        named(names, weights)


def test_names_may_be_the_words_of_a_workflows_parameter():
    both = named(["org/a s3://b/c.jsonl"], "3 1", splits=["train_sft train"])
    assert both == named(["org/a", "s3://b/c.jsonl"], "3 1", splits=["train_sft", "train"])
    assert [(its.name, its.weight, its.split) for its in both] == [
        ("org/a", 3, "train_sft"),
        ("s3://b/c.jsonl", 1, "train"),
    ]
    assert [its.name for its in named(["my file.jsonl"])] == ["my file.jsonl"]
    assert [its.split for its in named(["a", "b"], "1 1", splits=["test"])] == ["test", "test"]
    with pytest.raises(BadInput, match="--dataset-split: 3 values for 2 datasets"):
        named(["a", "b"], "1 1", splits=["x", "y", "z"])


def test_a_mix_goes_on_with_the_commits_it_was_begun_with():
    begun = {"name": "a + b", "mix": [{"name": "a", "revision": "1"}, {"name": "b", "revision": "2"}]}
    asked = named(["a", "b"], "1 1", revisions=["", "other"])
    assert [its.revision for its in as_begun(asked, begun)] == ["1", "other"]
    assert [its.revision for its in as_begun(named(["a"]), {"name": "a", "revision": "1"})] == ["1"]
    assert [its.revision for its in as_begun(named(["a"]), {})] == [None]

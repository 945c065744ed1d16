"""Which rows are asked: a share by content, none that a suite holds, and what a user's own hook makes of them."""

import json

import pytest

from spec.conversations.lineage import read_run
from spec.conversations.selection import select
from spec.conversations.shards import read_answers, read_counts, read_lines
from spec.errors import BadInput
from spec.storage import open_store

ROWS = [{"prompt": f"question {number}", "extra": number} for number in range(200)]


def prompts(store):
    return {row["messages"][0]["content"] for row in read_answers(store)}


def user(text):
    return {"role": "user", "content": text}


def test_a_fraction_is_the_same_rows_in_any_order_and_any_number_of_shards(run, jsonl, store, tmp_path):
    assert run("--dataset-name", jsonl(ROWS), "--fraction", 0.3)[0] == 0
    some = prompts(store)
    assert 40 < len(some) < 80 and read_counts(store)["rows"] == len(some)
    assert read_run(store)["dataset"]["fraction"] == 0.3
    backwards = jsonl(ROWS[::-1], "backwards.jsonl")
    for shard in ("0/3", "1/3", "2/3"):
        options = ["--fraction", 0.3, "--shard", shard, "--output", tmp_path / "shards"]
        assert run("--dataset-name", backwards, *options)[0] == 0
    shards = open_store(tmp_path / "shards")
    assert prompts(shards) == some
    sizes = [json.loads(shards.read(f"answers/shard-0000{n}-of-00003/shard.json"))["counts"]["rows"] for n in range(3)]
    assert min(sizes) > 8  # of each shard its share
    assert run("--dataset-name", jsonl(ROWS), "--fraction", 0.6, "--output", tmp_path / "more")[0] == 0
    assert some < prompts(open_store(tmp_path / "more"))


@pytest.mark.parametrize("fraction", [0, -1, 1.5, "nan"])
def test_a_fraction_that_is_none_is_refused(run, stub, jsonl, fraction):
    code, said = run("--dataset-name", jsonl(ROWS), "--fraction", fraction)
    assert code == 2 and "--fraction" in said and not stub.asked


def test_rows_that_a_suite_or_the_held_out_prompts_hold_are_left_out_and_counted(run, stub, jsonl, store):
    suite = jsonl([{"question": "question 3"}, {"question": "question  7\n"}], "suite.jsonl")
    held_out = jsonl([{"id": "x", "messages": [user("question 5")], "input_ids": [1]}], "prompts.jsonl")
    chats = [{"messages": [user("hi"), {"role": "assistant", "content": "x"}, user(f"question {n}")]} for n in range(8)]
    parts = [{"messages": [user([{"type": "text", "text": "question"}, {"type": "text", "text": "3"}])]}]
    code, _ = run("--dataset-name", jsonl([*chats, *parts]), "--leave-out", suite, "--leave-out", held_out)
    assert code == 0
    counts = read_counts(store)
    assert (counts["rows"], counts["answers"], counts["left_out"]) == (9, 5, 4)
    asked = json.dumps([its.messages for its in stub.asked])
    assert not any(f"question {n}" in asked for n in (3, 5, 7)) and "question 4" in asked
    told = read_run(store)["dataset"]["leave_out"]
    assert [(its["name"], len(its["sha256"])) for its in told] == [("suite.jsonl", 64), ("prompts.jsonl", 64)]


@pytest.mark.parametrize(
    ("suite", "told"),
    [
        (None, "no such file"),
        ([{"blob": 1}], "columns: blob"),
        ([{"prompt": ""}], "no row of it has"),
        (
            [{"prompt": "a"}, {"messages": [user("b")]}],
            "row 2 has no user's prompt, where others have theirs in prompt",
        ),
    ],
)
def test_a_suite_that_holds_no_prompts_or_hides_some_is_refused(run, stub, jsonl, tmp_path, suite, told):
    path = tmp_path / "suite.jsonl" if suite is None else jsonl(suite, "suite.jsonl")
    code, said = run("--dataset-name", jsonl(ROWS), "--leave-out", path)
    assert code == 2 and told in said and said.count("\n") == 1 and not stub.asked


@pytest.fixture
def hook(tmp_path, monkeypatch, request):
    """A module of the user's, in the folder that the tool is called from."""
    monkeypatch.chdir(tmp_path)

    def write(body):
        name = f"hook_{abs(hash(request.node.name))}"
        (tmp_path / f"{name}.py").write_text(f"def clean(row):\n{body}\n")
        return f"{name}:clean"

    return write


def test_a_hook_changes_rows_and_drops_them_before_anything_is_stored(run, stub, jsonl, store, tmp_path, hook):
    rows = [{"prompt": f"my number is PERSONAL-{number}"} for number in range(4)] + [{"prompt": "drop me PERSONAL-9"}]
    body = "    import random\n    if row['prompt'].startswith('drop'):\n        return None\n"
    body += "    return {**row, 'prompt': f'my number is secret {random.random()}'}"
    name = hook(body)
    assert run("--dataset-name", jsonl(rows), "--scrub", name)[0] == 0
    assert (read_counts(store)["answers"], read_counts(store)["scrubbed"]) == (4, 1)
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert b"PERSONAL" not in written and b"my number is secret" in written
    assert all("PERSONAL" not in json.dumps(its.body) for its in stub.asked)
    assert read_run(store)["dataset"]["scrub"] == name
    # It need not be repeatable: what is finished is known by what came before it.
    store.delete("answers/shard-00000-of-00001/shard.json")
    before = sorted(read_lines_of(tmp_path))
    asked = len(stub.asked)
    assert run("--dataset-name", jsonl(rows), "--scrub", name)[0] == 0
    assert len(stub.asked) == asked and sorted(read_lines(store)) == before


def test_a_hook_that_drops_every_row_is_not_done(run, stub, jsonl, hook):
    code, said = run("--dataset-name", jsonl(ROWS[:20]), "--scrub", hook("    pass"))
    assert code == 2 and "no row is answered, 20 are scrubbed: --scrub returns the row" in said
    assert not stub.asked


def read_lines_of(tmp_path):
    return [line for part in tmp_path.rglob("part-*.jsonl") for line in part.read_bytes().splitlines(keepends=True)]


def test_a_hook_sees_of_a_request_what_would_be_stored(run, exact, jsonl, store, hook):
    name = hook(
        "    assert set(row) == {'messages', 'sampling'}\n    row['messages'][0]['content'] = 'X'\n    return row"
    )
    line = {"custom_id": "1", "body": {"messages": [user("me")], "temperature": 0.5, "user": "me"}}
    assert run("--dataset-name", jsonl([line]), "--scrub", name)[0] == 0
    assert prompts(store) == {"X"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("    raise ValueError(row['prompt'])", "ValueError in hook_"),
        ("    return row['nothing']", "KeyError in hook_"),
        ("    return 7", "gave int, not a row with prompt, or None"),
        ("    return {}", "gave dict, not a row with prompt, or None"),
    ],
)
def test_a_hook_that_fails_is_one_line_that_quotes_nothing(run, stub, jsonl, hook, body, told):
    code, said = run("--dataset-name", jsonl([{"prompt": "PERSONAL"}]), "--scrub", hook(body))
    errors = [line for line in said.splitlines() if not line.startswith("{")]
    assert code == 2 and len(errors) == 1 and told in errors[0] and "PERSONAL" not in said
    assert not stub.asked


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("clean", "MODULE:FUNCTION"),
        ("no_such_module:clean", "ModuleNotFoundError"),
        ("json:no_such", "no function no_such"),
        ("json:__name__", "no function __name__"),
    ],
)
def test_a_hook_that_is_none_is_refused_before_anything_is_read(name, told):
    with pytest.raises(BadInput, match=told):
        select(scrub=name)

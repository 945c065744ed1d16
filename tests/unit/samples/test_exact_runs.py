"""From a server that gives its tokens to samples: exact runs, and both kinds in one."""

import asyncio
import json
import runpy

import pytest

from spec.conversations.filter import filter_shard
from spec.conversations.ids import Shard
from spec.conversations.lineage import read_run
from spec.conversations.server import Sampling, Server
from spec.conversations.shards import read_counts
from spec.conversations.sources import open_source
from spec.errors import BadInput
from spec.samples import prepare
from spec.samples.dataset import Samples
from spec.storage import open_store
from tests.answered import save_target
from tests.stub_server import END, Reply, StubServer, answer_to, prompt_ids, written_ids
from tests.tiny_models import tiny_tokenizer

SETTINGS = prepare.Settings(max_length=1024, held_out=0, draft_vocab_size=100)
CHATS = [[{"role": role, "content": f"{role} {number}"} for role in ("user", "assistant") * 2] for number in range(12)]


@pytest.fixture
def stub():
    with StubServer(ids=True) as server:
        server.tokenizes = False  # its tokenizer is nobody's
        yield server


@pytest.fixture
def target(tmp_path):
    return save_target(tiny_tokenizer(), tmp_path / "target")


@pytest.fixture
def filtered(stub, tmp_path):
    """Answer chats into a run, as one shard of several; gives its store."""

    def run(chats=CHATS, shard="0/1", sampling=Sampling(), name="run"):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
        store = open_store(tmp_path / name)
        server = Server(stub.url, sampling)
        asyncio.run(filter_shard(store, open_source(str(path)), server, Shard.parse(shard), parallel=4))
        return store

    return run


def rows(store, split="train"):
    samples = Samples.open(store.local_path() / "samples" / split)
    return [tuple(array.tolist() for array in samples[row]) for row in range(len(samples))]


@pytest.fixture
def said_of(monkeypatch, capsys):
    """Prepare a run as its command line does; gives what it said."""

    def prepared(store, target):
        options = [
            "--tokenizer",
            target,
            "--max-length",
            1024,
            "--held-out",
            0,
            "--draft-vocab-size",
            100,
            "--overwrite",
        ]
        monkeypatch.setattr("sys.argv", ["prepare_data.py", store.url, *map(str, options)])
        monkeypatch.setattr("signal.signal", lambda *_: None)  # it is this process's
        with pytest.raises(SystemExit) as ended:
            runpy.run_path("tools/prepare_data.py", run_name="__main__")
        assert not ended.value.code
        return capsys.readouterr().out

    return prepared


def test_every_token_is_the_servers_and_its_answers_alone_bear_loss(filtered, target):
    store = filtered()
    marker, _ = prepare.prepare(store, str(target), SETTINGS)
    assert marker.counts["train"] == marker.facts["exact"] == len(CHATS)
    assert marker.facts["train"]["loss_by_kind"] == {"text": marker.facts["train"]["loss_tokens"]}
    expected = []
    for chat in CHATS:
        first = answer_to(chat[:1])
        history = [chat[0], {"role": "assistant", "content": first}, chat[2]]
        ids, last = prompt_ids(history), [*written_ids(answer_to(history)), END]
        mask = [0] * len(ids)
        start = len(prompt_ids(chat[:1]))
        mask[start : start + len(first) + 1] = [1] * (len(first) + 1)
        expected.append((ids + last, mask + [1] * len(last)))
    assert sorted(rows(store)) == sorted(expected)


def test_an_answer_that_reads_back_otherwise_reaches_training_as_the_tokens_it_was(filtered, stub, target):
    """On the old path these are `retokenised_differently`, or lose what a stop string took off the text."""
    stub.behave = lambda body: Reply("seen", written="what was written STOP") if len(body["messages"]) == 1 else None
    store = filtered(CHATS[:1])
    marker, _ = prepare.prepare(store, str(target), SETTINGS)
    assert marker.counts["train"] == 1
    first, second = sorted(rows(store), key=lambda row: len(row[0]))
    if sum(first[1]) != len("what was written STOP") + 1:
        first, second = second, first
    assert first[0] == prompt_ids(CHATS[0][:1]) + written_ids("what was written STOP") + [END]
    history = [CHATS[0][0], {"role": "assistant", "content": "seen"}, CHATS[0][2]]
    assert second[0] == prompt_ids(history) + written_ids(answer_to(history)) + [END]
    assert sum(second[1]) == len(answer_to(history)) + 1  # of the first answer nothing bears loss in this row


def test_a_cut_answer_has_no_end(filtered, stub, target):
    stub.behave = lambda body: Reply("and so", finish_reason="length")
    store = filtered(CHATS[:1], sampling=Sampling(keep_truncated=True))
    prepare.prepare(store, str(target), SETTINGS)
    ((ids, mask),) = rows(store)
    assert bytes(ids[-6:]) == b"and so" and sum(mask) == 6


def test_a_run_of_both_kinds_is_counted_and_said(filtered, stub, target, said_of):
    """Its second shard was answered by a server without tokens, whose counts are those of our tokenizer."""
    store = filtered(shard="0/2")
    exact = read_counts_of(store)
    tokenizer = tiny_tokenizer()
    stub.ids = False

    def as_counted(body):
        return Reply(answer_to(body["messages"]), counted=counted(tokenizer, body["messages"]))

    stub.behave = as_counted
    filtered(shard="1/2")
    counts = read_counts(store)
    assert counts["answers"] == len(CHATS) and 0 < counts["exact"] == exact < len(CHATS)
    marker, _ = prepare.prepare(store, str(target), SETTINGS)
    assert marker.counts["train"] == len(CHATS) and marker.facts["exact"] == exact
    kinds = marker.facts["train"]["loss_by_kind"]
    assert set(kinds) == {"text", "rendered"} and sum(kinds.values()) == marker.facts["train"]["loss_tokens"]
    assert f"two kinds of rows: {exact} are" in said_of(store, target)


def test_a_run_of_one_kind_says_nothing_of_kinds(filtered, target, said_of):
    assert "kinds" not in said_of(filtered(), target)


def test_ids_beyond_the_targets_vocabulary_are_another_targets(filtered, tmp_path):
    small = save_target(tiny_tokenizer(), tmp_path / "small", vocab_size=200)
    with pytest.raises(BadInput, match="token 256 is outside of the target's vocabulary of 200"):
        prepare.prepare(filtered(), str(small), SETTINGS)


def test_another_tokenizer_than_the_servers_is_refused(filtered, stub, target):
    stub.tokenizes = True
    store = filtered()
    assert read_run(store)["versions"]["tokenizer"]
    with pytest.raises(BadInput, match="another tokenizer .* than the server's"):
        prepare.prepare(store, str(target), SETTINGS)


def test_a_server_with_another_tokenizer_does_not_go_on_with_a_run(filtered, stub, target, monkeypatch):
    stub.tokenizes = True
    store = filtered(shard="0/2")
    run = read_run(store)
    run["versions"]["tokenizer"] = "of before"
    store.write("run.json", json.dumps(run).encode())
    with pytest.raises(BadInput, match="the server's tokenizer: of before there"):
        filtered(shard="1/2")


def read_counts_of(store):
    return sum(
        json.loads(store.read(entry.key))["counts"].get("exact", 0)
        for entry in store.list("answers")
        if entry.key.endswith("shard.json")
    )


def counted(tokenizer, messages):
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    answer = answer_to(messages) + "<|im_end|>"
    return tuple(len(tokenizer(text, add_special_tokens=False).input_ids) for text in (prompt, answer))

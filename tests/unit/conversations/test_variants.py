"""More rows from one prompt: variants of the template's settings and samples, each exactly once."""

import asyncio
import json
from collections import Counter

import pytest

from spec.conversations.filter import filter_shard
from spec.conversations.ids import Shard
from spec.conversations.lineage import read_run
from spec.conversations.server import Sampling, Server
from spec.conversations.shards import read_answers, read_counts
from spec.conversations.sources import open_source
from spec.errors import BadInput
from spec.samples import prepare
from spec.storage import open_store
from tests.answered import save_target
from tests.stub_server import StubServer, prompt_ids
from tests.tiny_models import tiny_tokenizer

ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}


@pytest.fixture
def exact():
    with StubServer(ids=True) as stub:
        stub.tokenizes = False  # its tokenizer is nobody's
        yield stub


@pytest.fixture
def filtered(exact, jsonl, tmp_path):
    path = jsonl([{"prompt": f"question {number % 20}"} for number in range(24)])

    def run(sampling, shard="0/1"):
        store = open_store(tmp_path / "run")
        server = Server(exact.url, sampling)
        asyncio.run(filter_shard(store, open_source(str(path)), server, Shard.parse(shard), parallel=4))
        return store

    return run


def test_each_row_is_asked_once_for_each_variant_and_sample(filtered, exact):
    sampling = Sampling(temperature=1.0, seed=7, chat_template_kwargs=[ON, OFF], samples=3)
    store = filtered(sampling)
    rows = list(read_answers(store))
    assert len({row["id"] for row in rows}) == len(rows) == len(exact.asked) == 24 * 6
    assert {row["id"].partition(".")[2] for row in rows} == {f"v{v}.s{s}" for v in range(2) for s in range(3)}
    asked = Counter((str(its.body["chat_template_kwargs"]), its.body["seed"]) for its in exact.asked)
    assert asked == {(str(variant), seed): 24 for variant in (ON, OFF) for seed in (7, 8, 9)}
    for row in rows:
        (turn,), said = row["turns"], row["messages"][:1]
        assert turn["prompt_tokens"] == len(prompt_ids(said, [ON, OFF][row["variant"]]))
    assert read_run(store)["sampling"]["chat_template_kwargs"] == [ON, OFF]


def test_what_is_finished_is_not_asked_again(filtered, exact):
    sampling = Sampling(temperature=1.0, samples=3)
    store = filtered(sampling)
    (part,) = (entry.key for entry in store.list("answers") if "/part-" in entry.key)
    lines = store.read(part).splitlines(keepends=True)
    store.write(part, b"".join(lines[:30]))
    store.delete("answers/shard-00000-of-00001/shard.json")
    exact.asked.clear()
    filtered(sampling)
    assert len(exact.asked) == 72 - 30 and read_counts(store)["rows"] == 72


def test_all_of_one_prompt_lie_on_one_side(filtered, tmp_path):
    store = filtered(Sampling(temperature=1.0, chat_template_kwargs=[ON, OFF], samples=2))
    target = save_target(tiny_tokenizer(), tmp_path / "target")
    settings = prepare.Settings([ON, OFF], max_length=1024, held_out=0.3, draft_vocab_size=100)
    marker, _ = prepare.prepare(store, str(target), settings)
    assert marker.counts["held_out"] % 4 == 0 and 0 < marker.counts["held_out"] < 96
    assert marker.counts["held_out"] + marker.counts["train"] == 96
    prompts = store.read("samples/held_out/prompts.jsonl").decode().splitlines()
    assert len({tuple(json.loads(line)["input_ids"]) for line in prompts}) == len(prompts)


def test_one_variant_and_one_sample_are_recorded_as_they_were_before_there_were_more(filtered):
    store = filtered(Sampling(chat_template_kwargs=OFF))
    recorded = {"temperature": 0.0, "max_tokens": 2048, "seed": None, "chat_template_kwargs": OFF}
    assert read_run(store)["sampling"] == {**recorded, "keep_truncated": False}
    assert all("." not in row["id"] and "variant" not in row for row in read_answers(store))


def test_samples_need_a_temperature():
    with pytest.raises(BadInput, match="--samples 4 at temperature 0"):
        Server("http://127.0.0.1:1", Sampling(samples=4))

"""Rows with tools from a source to samples, against a server that gives tokens, and one that gives none."""

import asyncio
import json
import runpy
from collections import Counter

import pytest

from spec.conversations.filter import filter_shard
from spec.conversations.ids import Shard
from spec.conversations.lineage import read_run
from spec.conversations.server import Sampling, Server
from spec.conversations.shards import find_shards, read_answers, read_counts, read_rows
from spec.conversations.sources import open_source
from spec.errors import BadInput
from spec.publishing import answers as publishing
from spec.samples import prepare
from spec.samples.dataset import Samples
from spec.storage import open_store
from tests.answered import answered_run, save_target
from tests.stub_server import END, Reply, StubServer, answer_to, prompt_ids, written_ids
from tests.tiny_models import tiny_tokenizer
from tests.unit.conversations.test_tools import CLOCK, SAID, WEATHER, call, calls, result

TOOLS = [WEATHER, CLOCK]
CHAT = {"messages": [{"role": "user", "content": "hello"}]}
POLICY = {"history": "dataset", "tool_choice": "auto", "strict": "as the tools say"}


def agent(number=0, tools=TOOLS):
    """A row of two answers: a call, and what is said of its result."""
    user = {"role": "user", "content": f"Weather of {number}?"}
    return {"messages": [user, calls(call(id="a")), result(tool_call_id="a"), SAID], "tools": tools}


@pytest.fixture
def stub():
    with StubServer(ids=True) as server:
        server.tokenizes = False  # its tokenizer is nobody's
        yield server


@pytest.fixture
def filtered(stub, jsonl, tmp_path):
    def run(rows, sampling=Sampling(), shard="0/1", name="run"):
        store = open_store(tmp_path / name)
        source = open_source(str(jsonl(rows)))
        asyncio.run(filter_shard(store, source, Server(stub.url, sampling), Shard.parse(shard), parallel=4))
        return store

    return run


def by_turn(store):
    """The rows' answers by the end of their ids."""
    return {row["id"].partition(".")[2]: row for row in read_answers(store)}


def test_each_answer_is_asked_for_with_the_datasets_history_and_the_tools(filtered, stub):
    row = agent()
    store = filtered([row])
    asked = {len(its.messages): its.body for its in stub.asked}
    assert asked.keys() == {1, 3}
    for place, body in asked.items():
        assert body["messages"] == row["messages"][:place]
        assert body["tools"] == TOOLS and body["tool_choice"] == "auto"
    answers = by_turn(store)
    assert answers.keys() == {"t0", "t1"} and len({row["id"].partition(".")[0] for row in answers.values()}) == 1
    for place, answer in zip((1, 3), (answers["t0"], answers["t1"]), strict=True):
        history = row["messages"][:place]
        assert answer["messages"] == [*history, {"role": "assistant", "content": answer_to(history)}]
        assert answer["tools"] == TOOLS
    counts = read_counts(store)
    assert counts["rows"] == counts["answers"] == counts["exact"] == counts["with_tools"] == 2


def test_ordinary_chats_beside_them_are_what_they_were(filtered, stub):
    chat = [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(("user", "assistant") * 2)]
    (alone,) = read_answers(filtered([{"messages": chat}], name="alone"))
    assert "tools" not in read_run(filtered([{"messages": chat}], name="alone"))["sampling"]
    beside = {row["id"]: row for row in read_answers(filtered([agent(), {"messages": chat, "tools": []}]))}
    assert beside[alone["id"]] == alone and "." not in alone["id"] and len(beside) == 3
    assert not any("tools" in its.body for its in stub.asked if its.messages[0] == chat[0])


def test_the_same_words_with_other_tools_are_another_row(filtered):
    ids = {row["id"] for row in read_answers(filtered([agent(), agent(tools=TOOLS[:1]), agent()]))}
    assert Counter(name.partition("-")[2] for name in ids) == {"0.t0": 2, "0.t1": 2, "1.t0": 1, "1.t1": 1}


def test_variants_samples_and_turns_are_each_a_row_and_none_is_asked_twice(filtered, stub):
    sampling = Sampling(1.0, chat_template_kwargs=[{"x": 1}, {"x": 2}], samples=2)
    store = filtered([agent()], sampling)
    names = {f"v{variant}.s{sample}.t{turn}" for variant in range(2) for sample in range(2) for turn in range(2)}
    assert by_turn(store).keys() == names and len(stub.asked) == 8
    (part,) = (entry.key for entry in store.list("answers") if "/part-" in entry.key)
    store.write(part, b"".join(store.read(part).splitlines(keepends=True)[:5]))
    store.delete("answers/shard-00000-of-00001/shard.json")
    filtered([agent()], sampling)
    assert len(stub.asked) == 8 + 3 and by_turn(store).keys() == names


@pytest.mark.parametrize(("turns", "names"), [("all", {"t0", "t1"}), (1, {"t1"}), (5, {"t0", "t1"})])
def test_turns_bounds_what_is_asked_for(filtered, turns, names):
    store = filtered([agent()], Sampling(turns=turns))
    assert by_turn(store).keys() == names
    assert read_run(store)["sampling"]["tools"] == {**POLICY, "turns": turns}


def test_what_it_costs_is_said_once_before_anything_is_asked(filtered, stub, capsys):
    stub.behave = lambda body: print("asked")
    filtered([agent(number) for number in range(8)] + [CHAT] * 8)
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "tools" in line]
    tokens = [len(json.dumps([TOOLS, its.messages])) / 4 for its in stub.asked if "tools" in its.body]
    assert "rows with tools: 8 of the first 16; " in line and " 2.0 a row" in line
    words = line.replace(",", "").split()
    about = [float(words[place + 1]) for place, word in enumerate(words) if word == "about"]
    assert about == [pytest.approx(sum(tokens) / 8, rel=0.05), pytest.approx(sum(tokens), rel=0.05)]


def test_a_source_without_tools_costs_no_word(filtered, capsys):
    filtered([{"prompt": "x"}])
    assert "tools" not in capsys.readouterr().err


def test_a_run_that_was_finished_before_such_rows_were_answered_is_finished(filtered, stub, monkeypatch):
    monkeypatch.setattr("spec.conversations.filter._lineage", lambda sampling, seen: sampling.lineage)
    before = find_shards(filtered([agent()]))
    monkeypatch.undo()
    stub.asked.clear()
    assert find_shards(filtered([agent()])) == before and stub.asked == []
    with pytest.raises(BadInput, match="another run: sampling.tools"):
        filtered([agent()], Sampling(turns=1))


def test_one_that_was_only_begun_is_named_as_another(filtered):
    store = filtered([{"prompt": "x"}])
    run = read_run(store)
    store = filtered([agent()], name="begun")
    lineage = read_run(store)
    store.write("run.json", json.dumps({**lineage, "sampling": run["sampling"]}).encode())
    store.delete("answers/shard-00000-of-00001/shard.json")
    with pytest.raises(BadInput, match="another run: sampling.tools"):
        filtered([agent()], name="begun")


def test_a_row_that_cannot_be_sent_is_one_reject(filtered):
    bad = {"messages": [{"role": "user", "content": "?"}, result()], "tools": TOOLS}
    store = filtered([bad, agent()])
    (rejected,) = (
        row
        for shard, marker in find_shards(store).items()
        for row in read_rows(store, shard, marker)
        if "reject" in row
    )
    assert rejected["reject"] == "tool_without_call" and "." not in rejected["id"]
    assert read_counts(store)["rows"] == 3


CALLED = [
    {"id": "call_1", "index": 0, "type": "function", "function": {"name": "weather", "arguments": '{"city": "X"}'}}
]
WRITTEN = '<tool_call>\n{"name": "weather"}\n</tool_call>'


def test_a_call_without_a_word_is_an_answer_token_for_token(filtered, stub, tmp_path, monkeypatch, capsys):
    def behave(body):
        first = len(body["messages"]) == 1
        return Reply(None, "tool_calls", tool_calls=CALLED, written=WRITTEN) if first else None

    stub.behave = behave
    row = agent()
    store = filtered([row])
    answer = by_turn(store)["t0"]
    function = {"name": "weather", "arguments": '{"city": "X"}'}
    plain = [{"id": "call_1", "type": "function", "function": function}]
    assert answer["messages"][-1] == {"role": "assistant", "content": "", "tool_calls": plain}
    assert answer["turns"][0]["finish_reason"] == "tool_calls"

    target = save_target(tiny_tokenizer(), tmp_path / "target")
    marker, _ = prepare.prepare(
        store, str(target), prepare.Settings(max_length=2048, held_out=0.0, draft_vocab_size=100)
    )
    samples = Samples.open(store.local_path() / "samples/train")
    found = [tuple(array.tolist() for array in samples[place]) for place in range(len(samples))]
    expected = []
    for place, written in ((1, WRITTEN), (3, answer_to(row["messages"][:3]))):
        prompt, response = prompt_ids(row["messages"][:place], None, TOOLS), [*written_ids(written), END]
        expected.append((prompt + response, [0] * len(prompt) + [1] * len(response)))
    assert sorted(found) == sorted(expected)
    kinds = {"tool_calls": len(WRITTEN) + 1, "text": len(answer_to(row["messages"][:3])) + 1}
    assert marker.facts["train"]["loss_by_kind"] == kinds

    monkeypatch.setattr("signal.signal", lambda *_: None)  # it is this process's
    options = ["--tokenizer", str(target), "--held-out", "0", "--draft-vocab-size", "100"]
    monkeypatch.setattr("sys.argv", ["prepare_data.py", store.url, *options])
    with pytest.raises(SystemExit):
        runpy.run_path("tools/prepare_data.py", run_name="__main__")
    said = capsys.readouterr().out
    assert f"bear loss ({kinds['text'] / sum(kinds.values()):.0%} text, " in said and "% tool_calls); " in said
    assert "already done" in said and "two kinds of rows" not in said


def test_a_call_that_a_parser_found_broken_and_dropped_is_still_what_the_target_wrote(filtered, stub):
    stub.behave = lambda body: (
        Reply("", written="<tool_call>\n{") if len(body["messages"]) == 1 else Reply("", written="")
    )
    store = filtered([agent()])
    assert by_turn(store).keys() == {"t0"} and read_counts(store)["empty"] == 1  # which wrote an end and nothing else


def test_answers_with_tools_come_back_from_where_they_were_published(filtered, stub, tmp_path):
    stub.behave = lambda body: (
        Reply(None, "tool_calls", tool_calls=CALLED, written=WRITTEN) if len(body["messages"]) == 1 else None
    )
    parts = agent(1) | {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Paris?"}]}, *agent()["messages"][1:]]
    }
    store = filtered([agent(), parts, CHAT, {"messages": [{"role": "user", "content": "?"}, result()]}])
    publishing.publish(store, str(tmp_path / "published"), lambda line: None)
    again = open_store(tmp_path / "again")
    publishing.fetch(str(tmp_path / "published"), again, say=lambda line: None)
    assert list(read_answers(again)) == list(read_answers(store)) and read_counts(again) == read_counts(store)
    assert Counter("tools" in row for row in read_answers(again)) == {True: 4, False: 1}
    card = publishing.card(read_run(store), read_counts(store), 1)
    assert "in 4 of the answered rows" in card and "None" not in card


def test_all_answers_of_a_row_lie_on_one_side(filtered, tmp_path):
    store = filtered([agent(number) for number in range(24)])
    target = save_target(tiny_tokenizer(), tmp_path / "target")
    marker, _ = prepare.prepare(
        store, str(target), prepare.Settings(max_length=2048, held_out=0.3, draft_vocab_size=100)
    )
    assert 0 < marker.counts["held_out"] < 48 and marker.counts["train"] + marker.counts["held_out"] == 48
    prompts = [json.loads(line) for line in store.read("samples/held_out/prompts.jsonl").splitlines()]
    sides = Counter(prompt["id"].partition(".")[0] for prompt in prompts)
    assert set(sides.values()) == {2} and len(prompts) == marker.counts["held_out"]
    for prompt in prompts:
        assert prompt["input_ids"] == prompt_ids(prompt["messages"], None, TOOLS)


def test_such_rows_without_their_tokens_are_not_rendered(filtered, tmp_path):
    store = filtered([agent()])
    rows = [row | {"turns": [{**row["turns"][0]}]} for row in read_answers(store)]
    for row in rows:
        del row["turns"][0]["response_ids"]
    target = save_target(tiny_tokenizer(), tmp_path / "target")
    again = answered_run(tmp_path / "text", rows, target)
    with pytest.raises(BadInput, match="tools, and not the server's tokens"):
        prepare.prepare(again, str(target), prepare.Settings(max_length=2048, held_out=0, draft_vocab_size=100))


def test_without_tokens_such_rows_are_counted_and_hardly_asked_for(filtered, stub):
    stub.ids = False
    store = filtered([CHAT] * 10 + [agent(number) for number in range(20)])
    counts = read_counts(store)
    assert counts["no_token_ids"] == 40 and counts["answers"] == 10
    assert sum("tools" in its.body for its in stub.asked) <= 4  # what was in flight when it was known


def test_a_source_of_such_rows_alone_is_refused_with_what_to_do(filtered, stub):
    stub.ids = False
    with pytest.raises(BadInput, match=r"rejected as no_token_ids .*serve the target with SGLang 0\.5\.23"):
        filtered([agent(number) for number in range(20)])


def test_a_call_that_nobody_offered_needs_tokens_too(filtered, stub):
    stub.ids = False
    stub.behave = lambda body: Reply(None, "tool_calls", tool_calls=CALLED) if "x" in str(body["messages"]) else None
    counts = read_counts(filtered([{"prompt": "x"}, {"prompt": "y"}]))
    assert counts["no_token_ids"] == 1 and counts["answers"] == 1

"""Rows through the real SGLang server on CPU: with tools, several times, and as their requests were sampled.

The target is made to call: after a line feed it says one token that is a whole call, and then ends its turn.
"""

import asyncio
import json
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from spec import cli
from spec.conversations import token_ids
from spec.conversations.filter import filter_shard
from spec.conversations.ids import Shard
from spec.conversations.server import Sampling, Server
from spec.conversations.shards import read_answers, read_counts
from spec.conversations.sources import open_source
from spec.samples import prepare
from spec.samples.dataset import Samples
from spec.server import start as serving
from spec.storage import open_store
from tests.tiny_models import save_tiny_target, tiny_tokenizer

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\n' }}{% for tool in tools %}{{- tool | tojson + '\n' }}{% endfor %}{{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson + '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
MESSAGES = [
    {"role": "user", "content": "Is it raining in Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
            {"id": "b", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "b", "content": "rain"},
    {"role": "tool", "tool_call_id": "a", "content": "sun"},
    {"role": "assistant", "content": "It rains."},
]

pytestmark = pytest.mark.server


def save_calling_target(folder):
    """The target and its tokenizer, to which a whole call is one token."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(CALL, normalized=False)])
    tokenizer.chat_template = TEMPLATE
    save_tiny_target("llama", folder, tie_word_embeddings=False, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")):
            weight.zero_()
    line_feed, call, end = (tokenizer.convert_tokens_to_ids(its) for its in ("Ċ", CALL, tokenizer.eos_token))
    for place, (before, after) in enumerate([(line_feed, call), (call, end)]):
        weights["model.embed_tokens.weight"][before, place] = weights["lm_head.weight"][after, place] = 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return tokenizer, [call, end]


class Served(NamedTuple):
    target: Path
    tokenizer: Any
    answer: list[int]  # what the target says after a line feed
    url: str


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    tokenizer, answer = save_calling_target(folder / "target")
    flags = ("--tool-call-parser", "qwen25")
    with serving.sglang_on_cpu(folder / "target", log=folder / "server.log", flags=flags) as url:
        yield Served(folder / "target", tokenizer, answer, url)


@pytest.fixture
def filtered(served, tmp_path):
    """Rows answered by the server, through the tool's own command line."""
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "filter_data.py"))["main"]

    def run(rows, *options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["--dataset-name", str(path), "--output", str(tmp_path / "run"), "--base-url", served.url, *options]
        tool(**cli.parsed(tool, words))
        return open_store(tmp_path / "run")

    return run


def responses(store):
    """What the target wrote, by the row's name."""
    return {row["id"]: token_ids.decode(row["turns"][0]["response_ids"]).tolist() for row in read_answers(store)}


def test_samples_are_each_an_answer_and_differ(filtered):
    options = ["--samples", "4", "--temperature", "2", "--max-tokens", "8", "--keep-truncated"]
    store = filtered([{"prompt": "Is it raining?"}], *options)
    found = responses(store)
    counts = read_counts(store)  # a sample may be an end of turn alone
    assert {name.partition(".")[2] for name in found} <= {"s0", "s1", "s2", "s3"}
    assert counts["exact"] == counts["answers"] == 4 - counts.get("empty", 0)
    assert len({tuple(its) for its in found.values()}) > 1
    assert filtered([{"prompt": "Is it raining?"}], *options) and responses(store) == found  # none is asked again


def test_a_request_is_answered_as_it_was_sampled(filtered, served):
    call, end = served.answer
    asked = {
        "greedy": {"temperature": 0},
        "short": {"temperature": 0, "max_tokens": 1},
        "stopped": {"temperature": "0", "stop_token_ids": [call], "no_stop_trim": True},
        "long": {"temperature": 0, "min_tokens": 4, "max_completion_tokens": 4},
        "hot": {"temperature": "hot"},
        "endless": {"max_tokens": -1},
    }
    lines = [
        {"custom_id": name, "body": {"messages": [{"role": "user", "content": name}], "top_p": 1, **own}}
        for name, own in asked.items()
    ]
    store = filtered(lines, "--keep-sampling", "--max-tokens", "16", "--keep-truncated")
    counts = read_counts(store)
    assert (counts["answers"], counts["bad_sampling"], counts.get("refused_by_server", 0)) == (4, 2, 0)
    found = {row["messages"][0]["content"]: row for row in read_answers(store)}
    wrote = {name: responses(store)[row["id"]] for name, row in found.items()}
    assert wrote["greedy"] == [call, end] and wrote["short"] == wrote["stopped"] == [call]
    assert len(wrote["long"]) == 4 and end not in wrote["long"]
    assert {name: row["turns"][0]["finish_reason"] for name, row in found.items()} == {
        "greedy": "stop",
        "short": "length",
        "stopped": "stop",
        "long": "length",
    }


def test_a_call_is_an_answer_token_for_token(served, tmp_path):
    tokenizer, answer = served.tokenizer, served.answer
    store, rows = open_store(tmp_path / "run"), tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": MESSAGES, "tools": json.dumps(TOOLS)}) + "\n")
    server = Server(served.url, Sampling(max_tokens=16))
    asyncio.run(filter_shard(store, open_source(str(rows)), server, Shard(0, 1), parallel=2))
    settings = prepare.Settings(held_out=0, draft_vocab_size=64)
    marker, _ = prepare.prepare(store, str(served.target), settings)

    counts = read_counts(store)
    assert counts["rows"] == counts["answers"] == counts["exact"] == counts["with_tools"] == 2
    parsed = json.loads(json.dumps(MESSAGES))
    parsed[1]["content"], parsed[1]["tool_calls"][0]["function"]["arguments"] = "", {"city": "Rome"}
    offered = [{**its, "defer_loading": None} for its in TOOLS]  # the server adds that: no client could know
    found = {row["id"].partition(".")[2]: row for row in read_answers(store)}
    prompts = {}
    for name, place in (("t0", 1), ("t1", 4)):
        text = tokenizer.apply_chat_template(parsed[:place], tools=offered, tokenize=False, add_generation_prompt=True)
        prompts[name] = tokenizer(text, add_special_tokens=False).input_ids
        (turn,), said = found[name]["turns"], found[name]["messages"][-1]
        assert token_ids.decode(turn["prompt_ids"]).tolist() == prompts[name]
        assert token_ids.decode(turn["response_ids"]).tolist() == answer
        assert turn["finish_reason"] == "tool_calls" and said["content"] == ""
        (call,) = said["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}

    samples = Samples.open(tmp_path / "run/samples/train")
    for row in range(2):
        ids, mask = samples[row]
        assert ids.tolist() in [[*prompt, *answer] for prompt in prompts.values()]
        assert np.flatnonzero(mask).tolist() == [len(ids) - 2, len(ids) - 1]
    assert marker.facts["train"]["loss_by_kind"] == {"tool_calls": 4}

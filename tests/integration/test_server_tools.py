"""A row with tools through the real SGLang server on CPU: what it was given, what it wrote, and what bears loss.

The target is made to call: after a line feed it says one token that is a whole call, and then ends its turn.
"""

import asyncio
import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

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


def test_a_call_is_an_answer_token_for_token(tmp_path):
    tokenizer, answer = save_calling_target(tmp_path / "target")
    store, rows = open_store(tmp_path / "run"), tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": MESSAGES, "tools": json.dumps(TOOLS)}) + "\n")
    flags = ("--tool-call-parser", "qwen25")
    with serving.sglang_on_cpu(tmp_path / "target", log=tmp_path / "server.log", flags=flags) as url:
        server = Server(url, Sampling(max_tokens=16))
        asyncio.run(filter_shard(store, open_source(str(rows)), server, Shard(0, 1), parallel=2))
    settings = prepare.Settings(held_out=0, draft_vocab_size=64)
    marker, _ = prepare.prepare(store, str(tmp_path / "target"), settings)

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

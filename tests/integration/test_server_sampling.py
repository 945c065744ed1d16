"""Suites and sampled answers in the real SGLang server on CPU, beside an offline run of the same draft.

The temperature is low: a draft that learnt a tiny random target's greedy answers knows nothing of others.
"""

import json

import pytest
import torch

from spec.evaluation import gate, step
from spec.evaluation.settings import OfSuites, Settings
from spec.evaluation.suites import Suites
from spec.export import verify
from spec.export.export import export
from spec.methods import METHODS
from spec.server import start as serving
from spec.storage import open_store
from spec.storage.markers import Marker, describe_files, write_marker
from spec.target.frozen import FrozenTarget
from tests import tiny_drafts
from tests.tiny_models import save_tiny_target

TOKENS, PROMPTS, CONTEXT, TEMPERATURE = 24, 12, 512, 0.1

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a draft that knows some of its held-out prompts, and its target."""
    root = tmp_path_factory.mktemp("run")
    path = save_tiny_target("llama", root / "target")
    trained = FrozenTarget.load(path, dtype=torch.float32)
    draft, prompts = tiny_drafts.random_draft(trained), tiny_drafts.prompts(PROMPTS)
    tiny_drafts.train(draft, trained, prompts[: PROMPTS // 2], steps=60, length=TOKENS)
    method, store = METHODS["eagle3"], open_store(root / "run")
    rows = [
        {"id": f"{at}", "input_ids": its, "messages": [{"role": "user", "content": f"{at}"}]}
        for at, its in enumerate(prompts)
    ]
    store.write("samples/prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    files = describe_files(root / "run/samples", ["prompts.jsonl"])
    write_marker(store.at("samples"), "samples.json", Marker.of("prepare", {}, {}, files=files))
    asked = {"dtype": "float32", "context_length": CONTEXT, "inputs": {}, "lineage": {}}
    export(method, draft, store.at("draft"), target=verify.target_facts(method, path), **asked)
    return store, path


def evaluation(made, temperature):
    settings = Settings(PROMPTS, TOKENS, 3, 4, frozenset({"baseline"}), temperature)
    return step.Evaluation(*made, settings, overwrite=True)


def test_suites_are_counted_exactly_and_sampled_answers_within_chance(made, tmp_path):
    store, path = made
    greedy, drawn = evaluation(made, 0.0), evaluation(made, TEMPERATURE)
    own = tmp_path / "talks.jsonl"
    talks = [{"messages": [{"role": "user", "content": said} for said in (f"Tell {at}", "And?")]} for at in range(4)]
    own.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    rows = tmp_path / "gsm8k.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{at}?", "answer": f"{at}"}) + "\n" for at in range(6)))
    wanted, short = [str(own), f"gsm8k={rows}"], OfSuites(max_new_tokens=TOKENS)
    here = Suites(greedy, wanted, short).measure_offline("cpu")
    drawn.measure_offline("cpu")
    log = tmp_path / "server.log"
    flags = ("--context-length", str(CONTEXT))
    with serving.sglang_on_cpu(path, store.at("draft").local_path(), log=log, flags=flags) as url:
        there = Suites(greedy, wanted, short).measure_served(url)
        drawn.measure_speculative(url)
    for one, other in zip(here, there, strict=True):
        figures = ("histogram", "tokens", "by_turn", "by_context", "too_long")
        assert {name: one[name] for name in figures} == {name: other[name] for name in figures}
    assert [len(one["by_turn"]) for one in here] == [2, 1]

    facts = drawn.conclude(gate.Bar()).facts
    agreement = facts["agreement"]
    print(json.dumps(agreement))
    assert agreement["agree"], agreement
    assert 1.1 < facts["offline"]["accept_length"] < 3.9 and "tokens_equal" not in facts["offline"]
    assert facts["gate"]["passed"]

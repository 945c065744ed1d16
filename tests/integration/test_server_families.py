"""Qwen3 and Llama 4 in the real SGLang server on CPU: the tokens and the kept drafts of an offline run, exactly.

What test_thread.py shows of every step is not shown again: the draft is trained on the spot. Llama 4 is wrapped, as
Scout is: SGLang's text-only class rotates the halves of a head, for which only the wrapper's loader orders the weights.
"""

import pytest
import torch

from spec.evaluation.prompts import stop_tokens
from spec.evaluation.speculation import CachedTarget, greedy, speculate
from spec.export import verify
from spec.export.export import export
from spec.methods import METHODS
from spec.methods.eagle3.inference import InferenceDraft
from spec.server import start as serving
from spec.server.sglang import SglangServer
from spec.storage import open_store
from spec.target.frozen import FrozenTarget
from tests import tiny_drafts
from tests.tiny_models import save_tiny_target

STEPS, TOKENS, PROMPTS, CONTEXT = 3, 24, 6, 512
LLAMA4 = {"attention_chunk_size": 8, "floor_scale": 8}  # a prompt crosses a chunk, its answer three
DENSE = {"moe_layers": [], "interleave_moe_layer_step": 9}  # the same twice: transformers reads one, SGLang the other

pytestmark = pytest.mark.server


WHOLE = {"draft_vocab_size": None}  # the draft can say every token
NORMS = {"fc_norm": True, "norm_output": True}  # EAGLE-3.1's
TWO = {"num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("family", "shape", "its"),
    [
        ("qwen3", {}, WHOLE),
        ("qwen3_moe", {}, NORMS),
        ("llama4", LLAMA4 | DENSE, TWO),
        ("llama4", LLAMA4, {}),
    ],
    ids=["qwen3, whole vocabulary", "qwen3_moe, EAGLE-3.1", "llama4_dense, two layers", "llama4"],
)
def test_the_server_says_and_keeps_what_an_offline_run_does(tmp_path, family, shape, its):
    """The draft's shape, `its`, hangs on no family: each is shown with one."""
    path = save_tiny_target(family, tmp_path / "target", **shape)
    trained = FrozenTarget.load(path, dtype=torch.float32)
    draft = tiny_drafts.random_draft(trained, **its)
    prompts, stop = tiny_drafts.prompts(PROMPTS), stop_tokens(path)
    tiny_drafts.train(draft, trained, prompts[: PROMPTS // 2], steps=60, length=TOKENS)  # the others it has never seen
    method = METHODS["eagle3"]
    facts = verify.target_facts(method, path)
    store = open_store(tmp_path / "draft")
    export(
        METHODS["eagle3"], draft, store, target=facts, dtype="float32", context_length=CONTEXT, inputs={}, lineage={}
    )
    verify.verify(tmp_path / "draft", path, context_length=CONTEXT)

    offline = InferenceDraft.load(tmp_path / "draft")
    reader = CachedTarget(trained, offline.layers)
    expected = [speculate(reader, offline, prompt, steps=STEPS, max_new_tokens=TOKENS, stop=stop) for prompt in prompts]
    assert [answer.tokens for answer in expected] == [
        greedy(reader, prompt, max_new_tokens=TOKENS, stop=stop) for prompt in prompts
    ]
    flags = ("--context-length", str(CONTEXT))
    with serving.sglang_on_cpu(path, tmp_path / "draft", log=tmp_path / "server.log", flags=flags) as url:
        said = SglangServer(url).answer(prompts, max_new_tokens=TOKENS, stop=stop, concurrency=3).answers
    assert [answer.tokens for answer in said] == [answer.tokens for answer in expected]
    for answer, offline_one in zip(said, expected, strict=True):
        kept = [offline_one.kept.count(count) for count in range(STEPS + 1)]
        assert answer.histogram + [0] * (STEPS + 1 - len(answer.histogram)) == kept
    assert sum(sum(answer.kept) for answer in expected) > TOKENS, "too few drafts were kept to show anything"

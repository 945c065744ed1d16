"""The CPU server's hooks for drafts of blocks give what SGLang's own code gives, for less."""

import os
import subprocess
import sys
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from tests.unit.server.conftest import SHIM


def test_noise_is_drawn_for_sampled_requests_alone():
    code = """
import torch
from sglang.kernels.ops.speculative.dspark import markov_sample
noise, drawn = markov_sample._philox, []
markov_sample._philox = lambda *words: drawn.append(words) or noise(*words)
torch.manual_seed(0)
inputs = {"base_logits": torch.randn(2, 64), "bias": torch.randn(2, 64), "key": 7, "step": 0}
inputs |= {"offset": torch.zeros(1, dtype=torch.int64), "step_dtype": torch.float32}

def tokens(*temperatures, **more):
    return markov_sample.MarkovSampleStep.execute(temperatures=torch.tensor(temperatures), **inputs, **more)

likeliest = (inputs["base_logits"] + inputs["bias"]).argmax(-1)
kept = torch.empty(2, 64)
assert tokens(0.0, 0.0, logits_out=kept).equal(likeliest) and not drawn
assert kept.equal(inputs["base_logits"] + inputs["bias"])
assert tokens(0.0, 50.0)[0] == likeliest[0] and len(drawn) == 1
"""
    environment = os.environ | {"PYTHONPATH": f"{SHIM}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_the_heads_of_blocks_are_products_of_few_rows(monkeypatch):
    monkeypatch.syspath_prepend(SHIM)
    from sglang_on_cpu import block_drafts, few_rows

    asked = []
    monkeypatch.setattr(few_rows, "linear", lambda x, weight: asked.append(len(x)) or F.linear(x, weight))
    worker = SimpleNamespace(DFlashWorkerV2=type("Worker", (), {"_greedy_sample_from_vocab_parallel_head": None}))
    dspark = SimpleNamespace(project_through_lm_head=None)
    monkeypatch.setattr(torch.Tensor, "record_stream", torch.Tensor.record_stream)  # which a hook replaces
    block_drafts.draft_dflash(worker)
    block_drafts.project_dspark(dspark)
    shard = SimpleNamespace(num_org_elements=60, num_added_elements=0)
    head = SimpleNamespace(weight=torch.randn(64, 24), tp_size=1, shard_indices=shard)
    hidden = torch.randn(3, 24)
    drafts = worker.DFlashWorkerV2()._greedy_sample_from_vocab_parallel_head(hidden_states=hidden, lm_head=head)
    assert drafts.equal((hidden @ head.weight.T)[:, :60].argmax(-1))
    torch.testing.assert_close(dspark.project_through_lm_head(hidden, head), hidden @ head.weight.T)
    assert asked == [3, 3]

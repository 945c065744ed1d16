"""Hooks of the CPU server for drafts of blocks give what SGLang's own code gives, for less."""

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


def test_dspark_multiplies_by_the_head_as_all_else_does(monkeypatch):
    monkeypatch.syspath_prepend(SHIM)
    from sglang_on_cpu import block_drafts, few_rows

    asked = []
    monkeypatch.setattr(few_rows, "linear", lambda x, weight: asked.append(len(x)) or F.linear(x, weight))
    dspark = SimpleNamespace(project_through_lm_head=None)
    block_drafts.project_dspark(dspark)
    head, hidden = SimpleNamespace(weight=torch.randn(64, 24)), torch.randn(3, 24)
    torch.testing.assert_close(dspark.project_through_lm_head(hidden, head), hidden @ head.weight.T)
    assert asked == [3]

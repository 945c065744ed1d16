"""DFlash and DSpark in the real SGLang server on CPU: the tokens and the kept drafts of an offline run, exactly; of
sampled requests how many are kept on average, within confidence limits."""

import asyncio
from math import hypot

import pytest
import torch

from spec.evaluation.prompts import stop_tokens
from spec.evaluation.speculation import CachedTarget, greedy, speculate
from spec.export import verify
from spec.export.export import export
from spec.methods import METHODS
from spec.server import start as serving
from spec.server.client import Client
from spec.server.sglang import SglangServer
from spec.storage import open_store
from spec.target.frozen import FrozenTarget
from tests import sampled_blocks, tiny_drafts, trained_blocks
from tests.tiny_models import save_learnable_target, save_tiny_target

BLOCK, TOKENS, PROMPTS, CONTEXT = 5, 24, 6, 512
TEMPERATURE = 0.3
SAMPLED, SIMULATED = 16, 6  # answers to each prompt, of the server and of the simulation
LIMIT = 4.0  # standard errors between the two: by chance one time in 16,000

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("family", "method", "drafts"),
    [
        ("learnable", "dspark", 5),
        ("learnable", "dflash", 4),
        ("qwen3", "dspark", 5),
        ("qwen3", "dflash", 2),
        ("qwen3_moe", "dspark", 3),
    ],
)
def test_the_server_says_and_keeps_what_an_offline_run_does(tmp_path, family, method, drafts):
    """At the trained size of a block and, for the last two, at a smaller one, which is another block.

    Sampled where the target, a Llama, says something that can be guessed at a temperature too.
    """
    learnable, path = family == "learnable", tmp_path / "target"
    save_learnable_target(path) if learnable else save_tiny_target(family, path)
    trained = FrozenTarget.load(path, dtype=torch.float32)
    draft = trained_blocks.block_draft(trained, block_size=BLOCK, markov_rank=8 if method == "dspark" else 0)
    prompts, stop = tiny_drafts.prompts(PROMPTS), stop_tokens(path)
    assert trained_blocks.train(draft, trained, prompts[: PROMPTS // 2], steps=150, length=TOKENS) > 0.9

    way, store = METHODS[method], open_store(tmp_path / "draft")
    asked = {"dtype": "float32", "context_length": CONTEXT, "inputs": {}, "lineage": {}}
    export(way, draft, store, target=verify.target_facts(way, path), **asked)
    verify.verify(tmp_path / "draft", path, context_length=CONTEXT)

    offline = way.load(tmp_path / "draft", dtype=torch.float32)
    reader = CachedTarget(trained, offline.layers)

    def expected(stop):
        answers = [speculate(reader, offline, p, steps=drafts, max_new_tokens=TOKENS, stop=stop) for p in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.tokens == greedy(reader, prompt, max_new_tokens=TOKENS, stop=stop)
        return answers

    whole = expected(stop)
    assert sum(sum(its.kept) for its in whole) > TOKENS, "too few drafts were kept to show anything"
    inside = frozenset((*stop, whole[0].tokens[TOKENS // 2]))  # ends the first answer, which it knows, in a block
    flags, settings = ("--context-length", str(CONTEXT)), {"DRAFT_STEPS": str(drafts)}
    log = tmp_path / "server.log"
    with serving.sglang_on_cpu(path, tmp_path / "draft", log=log, flags=flags, environment=settings) as url:
        server = SglangServer(url)
        way.check_server(server.info, drafts, url)
        for concurrency, ends, wanted in ((1, stop, whole), (4, stop, whole), (4, inside, expected(inside))):
            said = server.answer(prompts, max_new_tokens=TOKENS, stop=ends, concurrency=concurrency).answers
            for answer, its in zip(said, wanted, strict=True):
                kept = [its.kept.count(count) for count in range(drafts + 1)]
                assert answer.tokens == its.tokens
                assert answer.histogram + [0] * (drafts + 1 - len(answer.histogram)) == kept
        if not learnable:
            return
        served = sampled(url, prompts * SAMPLED)

    random = torch.Generator().manual_seed(0)
    asked = {"drafts": drafts, "temperature": TEMPERATURE, "tokens": TOKENS, "random": random}
    simulated = [sampled_blocks.rounds(reader, offline, prompt, **asked) for prompt in prompts * SIMULATED]
    (there, its_error), (here, error) = sampled_blocks.mean_kept(served), sampled_blocks.mean_kept(simulated)
    limits = LIMIT * hypot(its_error, error)
    print(
        f"{method}: kept a forward at temperature {TEMPERATURE}: server {there:.3f}, offline {here:.3f} +- {limits:.3f}"
    )
    assert abs(there - here) < limits
    greedily = sum(sum(its.kept) for its in whole) / sum(len(its.kept) for its in whole)
    assert greedily - here > limits, "greedy answers would pass too"


def sampled(url, prompts):
    """The drafts kept by each forward in sampled answers of TOKENS tokens."""
    sampling = {"max_new_tokens": TOKENS, "temperature": TEMPERATURE, "ignore_eos": True}

    async def ask():
        async with Client(url, patience=60, timeout=600) as client:
            return await client.ask("/generate", {"input_ids": prompts, "sampling_params": sampling})

    counts = [reply["meta_info"]["spec_correct_drafts_histogram"] for reply in asyncio.run(ask())]
    return [[kept for kept, often in enumerate(histogram) for _ in range(often)] for histogram in counts]

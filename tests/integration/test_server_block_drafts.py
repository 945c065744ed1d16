"""DFlash and DSpark in the real SGLang server on CPU: the tokens and the kept drafts of an offline run, exactly; of
sampled requests how many are kept on average, within confidence limits."""

from math import hypot

import pytest
import torch

from spec.evaluation.figures import Counted, acceptance, interval
from spec.evaluation.prompts import stop_tokens
from spec.evaluation.speculation import Answer, CachedTarget, Sampling, greedy, speculate
from spec.export import verify
from spec.export.export import export
from spec.methods import METHODS
from spec.server import start as serving
from spec.server.sglang import SglangServer
from spec.storage import open_store
from spec.target.frozen import FrozenTarget
from tests import tiny_drafts, trained_blocks
from tests.tiny_models import save_learnable_target, save_tiny_target

BLOCK, TOKENS, PROMPTS, CONTEXT = 5, 24, 6, 512
TEMPERATURE = 0.3
SAMPLED, SIMULATED = 16, 6  # answers to each prompt, of the server and of the simulation
LIMIT = 2.0  # times the 95% intervals of the two: by chance one time in 10,000

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("family", "method", "drafts"),
    [
        ("learnable", "dspark", 5),
        ("learnable", "dflash", 4),
        ("qwen3", "dflash", 2),
        ("qwen3_moe", "dspark", 3),
    ],
)
def test_the_server_says_and_keeps_what_an_offline_run_does(tmp_path, family, method, drafts):
    """At the trained size of a block and, for Qwen3, at a smaller one, which is another block.

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

    def answered(asked, stop, **how):
        return [speculate(reader, offline, p, steps=drafts, max_new_tokens=TOKENS, stop=stop, **how) for p in asked]

    def expected(stop):
        answers = answered(prompts, stop)
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
                assert answer.tokens == its.tokens
                assert histogram(answer) == histogram(its)
        if not learnable:
            return
        asked = {"max_new_tokens": TOKENS, "stop": stop, "concurrency": 16, "temperature": TEMPERATURE}
        served = server.answer(prompts * SAMPLED, **asked).answers

    sampling = Sampling(TEMPERATURE, torch.Generator().manual_seed(0))
    simulated = answered(prompts * SIMULATED, stop, sampling=sampling)
    (there, its_limits), (here, limits) = limited(map(counted, served)), limited(map(counted, simulated))
    print(f"{method} at {TEMPERATURE}: {there:.3f} +- {its_limits:.3f} served, {here:.3f} +- {limits:.3f} offline")
    between = LIMIT * hypot(its_limits, limits)
    assert abs(there - here) < between
    assert limited(map(counted, whole))[0] - here > between, "greedy answers would pass too"


def counted(answer):
    """`Counted`, of an answer of either."""
    return Counted(0, len(answer.tokens), histogram(answer))


def histogram(answer):
    """Forwards that kept 0, 1, .. BLOCK drafts; the server's ends with the last one that is not 0."""
    if isinstance(answer, Answer):
        return [answer.kept.count(count) for count in range(BLOCK + 1)]
    return answer.histogram + [0] * (BLOCK + 1 - len(answer.histogram))


def limited(answers):
    """The accept length of all of them, and how far its 95% interval reaches to either side."""
    answers = list(answers)
    length = acceptance(answers).accept_length
    return length, interval(answers)[1] - length

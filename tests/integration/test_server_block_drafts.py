"""DFlash and DSpark in the real SGLang server on CPU: the tokens and the kept drafts of an offline run, exactly."""

import pytest
import torch

from spec.evaluation.prompts import stop_tokens
from spec.evaluation.speculation import CachedTarget, greedy, speculate
from spec.export import verify
from spec.export.export import export
from spec.methods import METHODS
from spec.server import start as serving
from spec.server.sglang import SglangServer
from spec.storage import open_store
from spec.target.frozen import FrozenTarget
from tests import tiny_drafts, trained_blocks
from tests.tiny_models import save_tiny_target

BLOCK, TOKENS, PROMPTS, CONTEXT = 5, 24, 6, 512

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("family", "method", "drafts"),
    [("llama", "dspark", 5), ("llama", "dflash", 4), ("qwen3", "dflash", 2), ("qwen3_moe", "dspark", 3)],
)
def test_the_server_says_and_keeps_what_an_offline_run_does(tmp_path, family, method, drafts):
    """At the trained size of a block and, for the last two, at a smaller one, which is another block."""
    path = save_tiny_target(family, tmp_path / "target")
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

"""Sampled speculation keeps the target's distribution and accepts as often as SGLang's rule says, method by method."""

from pathlib import Path

import pytest
import torch

from spec.evaluation import gate
from spec.evaluation.speculation import CachedTarget, Sampling, speculate, verified
from spec.methods import METHODS
from spec.methods.block.inference import BlockDrafter
from spec.target.frozen import FrozenTarget
from tests import tiny_drafts
from tests.tiny_models import save_tiny_target

DRAWS = 6000
TEMPERATURE = 0.6


def sampling(seed=0):
    return Sampling(TEMPERATURE, torch.Generator().manual_seed(seed))


def distribution(logits):
    return (logits / TEMPERATURE).softmax(-1)


def near(shares, wanted):
    """Within four standard deviations of as many draws."""
    shares, wanted = torch.as_tensor(shares, dtype=torch.float64), torch.as_tensor(wanted, dtype=torch.float64)
    return bool(((shares - wanted).abs() < 4 * (wanted * (1 - wanted) / DRAWS).sqrt() + 1e-3).all())


def test_a_first_choice_is_kept_as_often_as_the_target_would_draw_it():
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    p, its = distribution(logits[0]), sampling()
    said = [verified(logits, [4], None, its) for _ in range(DRAWS)]
    assert near(torch.bincount(torch.tensor([one[0] for one in said]), minlength=6) / DRAWS, p)
    kept = [one for one in said if len(one) == 2]
    assert near(len(kept) / DRAWS, p[4]) and all(one[0] == 4 for one in kept)


def test_a_drawn_draft_is_kept_by_rejection_sampling_and_the_answer_is_the_targets():
    generator = torch.Generator().manual_seed(5)
    logits, q = torch.randn(2, 6, generator=generator), torch.randn(6, generator=generator).softmax(-1)
    p, its = distribution(logits[0]), sampling()
    drafts = torch.multinomial(q.expand(DRAWS, 6), 1, generator=generator)[:, 0].tolist()
    said = [verified(logits, [draft], q[None], its) for draft in drafts]
    assert near(torch.bincount(torch.tensor([one[0] for one in said]), minlength=6) / DRAWS, p)
    assert near(sum(len(one) == 2 for one in said) / DRAWS, torch.minimum(p, q).sum())


@pytest.mark.parametrize("drawn", [False, True])
def test_the_servers_own_verification_keeps_as_many(drawn, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "images/server-cpu/shim"))
    from sgl_kernel import sampling as server

    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(4, 5, generator=generator)
    q = torch.randn(3, 5, generator=generator).softmax(-1)
    likeliest = logits[:3].argmax(-1)
    drafts = torch.multinomial(q.repeat(DRAWS, 1), 1, generator=generator).view(DRAWS, 3)
    drafts = drafts if drawn else likeliest.expand(DRAWS, 3)
    index = torch.arange(DRAWS * 4).view(DRAWS, 4)
    accepted = torch.zeros(DRAWS, dtype=torch.int32)
    torch.manual_seed(0)
    verify = server.chain_speculative_sampling if drawn else server.tree_speculative_sampling_target_only
    verify(
        torch.zeros(DRAWS * 4, dtype=torch.int32),
        torch.full((DRAWS, 4), -1, dtype=torch.int32),
        accepted,
        torch.cat((torch.zeros(DRAWS, 1, dtype=torch.int64), drafts), 1),
        index,
        torch.tensor([1, 2, 3, -1]).expand(DRAWS, 4),
        torch.full((DRAWS, 4), -1),
        torch.rand(DRAWS, 4),
        torch.rand(DRAWS),
        distribution(logits).expand(DRAWS, 4, 5),
        q.expand(DRAWS, 3, 5) if drawn else torch.zeros(DRAWS, 4, 5),
    )
    theirs = torch.bincount(accepted, minlength=4) / DRAWS
    its = sampling()
    ours = [len(verified(logits, row, q if drawn else None, its)) - 1 for row in drafts.tolist()]
    assert near(torch.bincount(torch.tensor(ours), minlength=4) / DRAWS, theirs)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return FrozenTarget.load(save_tiny_target("llama", tmp_path_factory.mktemp("target")), dtype=torch.float32)


def block_drafter(llama, tmp_path, method):
    from spec.export import verify
    from spec.export.export import export
    from spec.storage import open_store
    from tests import trained_blocks

    path = save_tiny_target("llama", tmp_path / "target")
    draft = trained_blocks.block_draft(llama, block_size=5, markov_rank=8 if method == "dspark" else 0)
    facts = verify.target_facts(METHODS[method], path)
    asked = {"dtype": "float32", "context_length": 512, "inputs": {}, "lineage": {}}
    export(METHODS[method], draft, open_store(tmp_path / "draft"), target=facts, **asked)
    return BlockDrafter.load(tmp_path / "draft")


@pytest.mark.parametrize("method", ["dflash", "dspark"])
def test_dspark_draws_its_drafts_and_dflash_does_not(llama, tmp_path, method):
    draft = block_drafter(llama, tmp_path, method)
    target = CachedTarget(llama, draft.layers)
    prompt = tiny_drafts.prompts(1)[0]
    _, aux = target.read(prompt, 1)
    unread = torch.tensor([*prompt[1:], 70])
    drawn = [
        draft.draw(
            unread, aux, draft.empty_cache(), target, 4, temperature=5.0, generator=torch.Generator().manual_seed(s)
        )
        for s in range(12)
    ]
    first, _ = draft.propose(unread, aux, draft.empty_cache(), target, 4)
    said = {tuple(tokens) for tokens, _, _ in drawn}
    if method == "dflash":
        assert said == {tuple(first)} and drawn[0][1] is None
    else:
        assert len(said) > 4
        assert drawn[0][1].shape == (4, llama.vocab_size) and torch.allclose(drawn[0][1].sum(-1), torch.ones(4))
        cold = draft.draw(
            unread, aux, draft.empty_cache(), target, 4, temperature=1e-3, generator=torch.Generator().manual_seed(0)
        )
        assert cold[0] == first


class Argmax:
    """Drafts what the target itself finds likeliest, token after token; it looks where no draft can."""

    def __init__(self, truth):
        self.truth, self.known = truth, 0

    def empty_cache(self):
        return None

    def draw(self, unread, aux, cache, target, steps, **sampling):
        return [int(unread[-1])] * steps, None, None


def test_an_answer_is_drawn_anew_with_each_seed_and_counts_add_up(llama):
    target, prompt = CachedTarget(llama, ()), tiny_drafts.prompts(1)[0]
    limits = {"steps": 3, "max_new_tokens": 30, "stop": frozenset()}
    one, same, other = (
        speculate(target, Argmax(()), prompt, **limits, sampling=Sampling(1.5, torch.Generator().manual_seed(seed)))
        for seed in (0, 0, 1)
    )
    assert one == same != other
    assert len(one.tokens) == 30 == 1 + sum(map(len, one.runs))


def part(length, half, **facts):
    its = {"accept_length": length, "interval": [length - half, length + half], "outputs": [[1]], "differ": []}
    return its | {"temperature": TEMPERATURE, "histograms": [[1]], "accept_rate": 0.4} | facts


def test_offline_and_server_agree_within_their_intervals():
    facts = gate.conclude({"offline": part(2.0, 0.3), "speculative": part(2.35, 0.3)}, gate.Bar(1.5))
    assert facts["agreement"]["agree"] and facts["gate"]["passed"]
    assert facts["agreement"]["interval_apart"] == pytest.approx([0.35 - 0.4243, 0.35 + 0.4243], abs=1e-3)
    assert "sampled at 0.6" in facts["gate"]["why"]
    facts = gate.conclude({"offline": part(2.0, 0.05), "speculative": part(2.35, 0.05)}, gate.Bar(1.5))
    assert not facts["agreement"]["agree"] and "misreads the draft" in facts["gate"]["why"]

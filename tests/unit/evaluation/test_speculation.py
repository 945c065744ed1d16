"""Speculation gives the target's own tokens, whatever the draft says, and counts as the server does."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from spec.evaluation.figures import Acceptance, differences, total
from spec.evaluation.speculation import CachedTarget, greedy, is_greedy, speculate
from spec.methods.eagle3.export import sglang_config
from spec.methods.eagle3.inference import InferenceDraft
from spec.target.frozen import FrozenTarget
from tests import tiny_drafts
from tests.tiny_models import FAMILIES, save_tiny_target

STEPS = 3
LAYERS = (1, 3, 4)
NO_STOP: frozenset[int] = frozenset()


class ScriptedDraft:
    """Says the target's own next tokens, but the `wrong[n]`-th of chain n, and a token that is never right there."""

    def __init__(self, truth, wrong):
        self.truth, self.wrong, self.chain, self.known = truth, wrong, 0, 0

    def empty_cache(self):
        return None

    def propose(self, unread, aux, cache, target, steps):
        self.known += len(aux)
        wrong = self.wrong[self.chain % len(self.wrong)]
        self.chain += 1
        # The prompt's P positions are known, the token after them is unread: drafts are P + 1, ..
        ahead = self.truth[self.known + 1 : self.known + 1 + steps]
        return [token if at != wrong else (token + 1) % 256 for at, token in enumerate(ahead)], None


def load(tmp_path, family, **overrides):
    return FrozenTarget.load(save_tiny_target(family, tmp_path / family, **overrides), dtype=torch.float32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load(tmp_path_factory.mktemp("target"), "llama")


def inference(draft) -> InferenceDraft:
    """`draft` as it would be read from its export in fp32."""
    return InferenceDraft(LlamaConfig.from_dict(sglang_config(draft.config, "float32", 512)), draft.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_the_targets_own_whatever_the_draft_says(tmp_path, family):
    target = CachedTarget(load(tmp_path, family), LAYERS)
    for prompt in tiny_drafts.prompts(2):
        plain = greedy(target, prompt, max_new_tokens=40, stop=NO_STOP)
        truth = [*prompt, *greedy(target, prompt, max_new_tokens=40 + STEPS, stop=NO_STOP)]
        draft = ScriptedDraft(truth, wrong=[0, 2, 9, 1])
        answer = speculate(target, draft, prompt, steps=STEPS, max_new_tokens=40, stop=NO_STOP)
        assert answer.tokens == plain
        pattern = [0, 2, 3, 1] * 10
        assert answer.kept == pattern[: len(answer.kept)] and len(answer.kept) >= 15
        assert sum(map(len, answer.runs)) + 1 == 40  # the first token comes with the prompt


def test_plain_greedy_is_transformers_own(tmp_path):
    path = save_tiny_target("qwen3", tmp_path / "target")
    prompt = tiny_drafts.prompts(1)[0]
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    target = CachedTarget(FrozenTarget.load(path, dtype=torch.float32), LAYERS)
    assert greedy(target, prompt, max_new_tokens=20, stop=NO_STOP) == theirs[0, len(prompt) :].tolist()


def test_one_forward_tells_the_targets_own_answer_from_any_other(llama):
    target = CachedTarget(llama, LAYERS)
    for prompt in tiny_drafts.prompts(3):
        plain = greedy(target, prompt, max_new_tokens=12, stop=NO_STOP)
        assert is_greedy(target, prompt, plain)
        for at in range(12):
            assert not is_greedy(target, prompt, [*plain[:at], (plain[at] + 1) % 256, *plain[at + 1 :]])


def test_an_answer_ends_with_its_stop_token_inside_a_run(llama):
    target = CachedTarget(llama, LAYERS)
    prompt = tiny_drafts.prompts(1)[0]
    longer = greedy(target, prompt, max_new_tokens=40, stop=NO_STOP)
    stop = longer[6]  # the first token comes with the prompt, four with the first forward, two with the second
    assert stop not in longer[:6]
    draft = ScriptedDraft([*prompt, *longer], wrong=[9])
    answer = speculate(target, draft, prompt, steps=STEPS, max_new_tokens=30, stop=frozenset({stop}))
    assert answer.tokens == longer[:7] == greedy(target, prompt, max_new_tokens=30, stop=frozenset({stop}))
    assert answer.kept == [3, 3]  # the server counts what a forward kept, also past the answer's end
    assert [len(run) for run in answer.runs] == [4, 2]


def test_an_answer_of_one_token_needs_no_forward(llama):
    target = CachedTarget(llama, LAYERS)
    prompt = tiny_drafts.prompts(1)[0]
    first = greedy(target, prompt, max_new_tokens=1, stop=NO_STOP)
    answer = speculate(target, ScriptedDraft([], [0]), prompt, steps=STEPS, max_new_tokens=9, stop=frozenset(first))
    assert (answer.tokens, answer.kept) == (first, [])


@torch.no_grad()
def proposed_from_scratch(target: FrozenTarget, draft: InferenceDraft, sequence: list[int]) -> list[int]:
    """What the definition says the draft proposes after `sequence`, whose last token has no features yet: no cache."""
    model = target.model
    model.set_attn_implementation("eager")
    states = model.model(torch.tensor([sequence[:-1]]), output_hidden_states=True, use_cache=False).hidden_states
    aux = torch.cat([states[layer + 1][0] for layer in draft.layers], -1)
    tokens, hidden, drafts = sequence[1:], draft.project(aux), []
    for _ in range(STEPS):
        output, _ = draft.read(target.embed_weight[tokens], hidden, draft.empty_cache())
        drafts.append(int(draft.to_target[draft.logits(output[-1:])[0].argmax()]))
        tokens, hidden = [*tokens, drafts[-1]], torch.cat([hidden, output[-1:]])
    return drafts


def test_drafts_and_counts_are_those_of_the_definition_without_a_cache(llama):
    module = tiny_drafts.random_draft(llama, 160)
    asked = tiny_drafts.prompts(3)
    tiny_drafts.train(module, llama, asked, steps=40, length=24)
    draft = inference(module)
    kept = []
    for prompt in asked:
        target = CachedTarget(llama, LAYERS)
        truth = [*prompt, *greedy(target, prompt, max_new_tokens=24 + STEPS + 1, stop=NO_STOP)]
        answer = speculate(target, draft, prompt, steps=STEPS, max_new_tokens=24, stop=NO_STOP)
        at = len(prompt) + 1
        for count in answer.kept:
            drafts = proposed_from_scratch(llama, draft, truth[:at])
            agree = [a == b for a, b in zip(drafts, truth[at:], strict=False)]
            assert count == (agree.index(False) if False in agree else STEPS)
            at += count + 1
        kept += answer.kept
    assert set(kept) == {0, 1, 2, 3}  # else this test says little


def test_figures_count_as_the_server_does():
    counted = Acceptance(tokens=24, histogram=total([[2, 1, 0, 3], [1, 1, 1, 0]]))
    assert counted.histogram == [3, 2, 1, 3] and counted.forwards == 9
    assert counted.accept_length == pytest.approx(24 / 9)
    assert counted.by_position == pytest.approx([6 / 9, 4 / 9, 3 / 9])
    assert counted.accept_rate == pytest.approx((2 + 2 + 9) / 27)
    assert Acceptance(3, [0, 0, 0, 0]).accept_length == 1.0


def test_differences_name_where_answers_part():
    asked = []

    def gap(prefix, one, other):
        asked.append((prefix, one, other))
        return 0.5

    expected, found = [[1, 2, 3], [4, 5], [6, 7, 8]], [[1, 2, 3], [4, 9], [6, 7]]
    assert differences(expected, found, [(10,), (11, 12), (13,)], gap) == [
        {"prompt": 1, "at": 1, "gap": 0.5},
        {"prompt": 2, "at": 2, "gap": None},
    ]
    assert asked == [([11, 12, 4], 5, 9)]

"""A draft learns one fixed batch by heart, in every family: no shift, mask or feature can be silently wrong and do so.

The same draft is then run as the server runs it: what a step of training calls position k must be its k-th guess.
"""

import pytest
import torch
from transformers import LlamaConfig

from spec.evaluation.speculation import CachedTarget, greedy, speculate
from spec.methods.eagle3.config import DraftConfig
from spec.methods.eagle3.draft import EagleDraft
from spec.methods.eagle3.export import sglang_config
from spec.methods.eagle3.inference import InferenceDraft
from spec.methods.eagle3.step import decay_weights, observe, step_loss
from spec.target.frozen import FrozenTarget
from spec.training.batch import collate
from tests import tiny_drafts
from tests.tiny_models import FAMILIES, VOCAB_SIZE, save_tiny_target

POSITIONS, LENGTH, PROMPTS = 3, 14, 4
NO_STOP: frozenset[int] = frozenset()


def overfitted(path, answers, prompts):
    """The draft after one batch often enough, and its accuracy by position."""
    target = FrozenTarget.load(path, dtype=torch.float32)
    torch.manual_seed(0)
    draft = EagleDraft(DraftConfig.for_target(target.text_config, VOCAB_SIZE))
    tiny_drafts.set_vocabulary(draft, torch.arange(VOCAB_SIZE))
    draft.share_target(target.embed_weight, target.head_weight)
    documents = [
        (prompt + answer, [0] * len(prompt) + [1] * LENGTH) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    half = PROMPTS // 2
    seen = observe(draft, target, collate([documents[:half], documents[half:]]), steps=POSITIONS)  # two packed rows
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3, weight_decay=0.0)
    weights = decay_weights(POSITIONS) / seen.count
    for _ in range(600):
        result = step_loss(draft, seen, weights)
        if (result.correct / result.count).min() == 1.0:
            break
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return draft, (result.correct / result.count).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_learns_one_batch_by_heart_and_says_it_as_the_server_asks(tmp_path, family):
    path = save_tiny_target(family, tmp_path / "target")
    reader = CachedTarget(FrozenTarget.load(path, dtype=torch.float32), (1, 3, 4))
    prompts = tiny_drafts.prompts(PROMPTS)
    answers = [greedy(reader, prompt, max_new_tokens=LENGTH, stop=NO_STOP) for prompt in prompts]
    assert len({token for answer in answers for token in answer}) > 20, "too little was said to show anything"

    draft, accuracy = overfitted(path, answers, prompts)
    assert min(accuracy) > 0.95, accuracy

    served = InferenceDraft(LlamaConfig.from_dict(sglang_config(draft.config, "float32", 512)), draft.state_dict())
    kept = []
    for prompt, answer in zip(prompts, answers, strict=True):
        said = speculate(reader, served, prompt, steps=POSITIONS, max_new_tokens=LENGTH, stop=NO_STOP)
        assert said.tokens == answer
        kept += said.kept[:-1]  # the last chain ends with the answer
    for position in range(POSITIONS):
        assert sum(count > position for count in kept) > 0.8 * len(kept), kept  # a shift would keep next to none

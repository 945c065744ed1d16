"""Every family from answers to an evaluated draft, as its user goes, on two ranks with a stop between; no server."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spec.evaluation.settings import Settings
from spec.evaluation.step import Evaluation
from spec.export.extract import extract, find_checkpoint
from spec.export.verify import verify
from spec.samples import prepare
from spec.storage import open_store
from tests.answered import answered, answered_run, chat
from tests.tiny_models import save_tiny_target, tiny_tokenizer
from tests.training_runs import Interruption, losses, rows, train

CONVERSATIONS, DRAFT_VOCAB = 24, 128


@pytest.fixture(params=["llama", "llama4", "qwen3", "qwen3_moe"])
def target(request, tmp_path):
    return save_tiny_target(request.param, tmp_path / "target")


@pytest.fixture
def run(target, tmp_path):
    """A run with answers, some of two turns."""
    tokenizer = tiny_tokenizer()
    said = []
    for n in range(CONVERSATIONS):
        contents = [f"What is {n}?", f"It is {n * 7}.", "And then?", f"Then {n}, {n + 1}."][: 2 + 2 * (n % 2)]
        said.append(answered(tokenizer, chat(*contents), [text + "<|im_end|>" for text in contents[1::2]]))
    return answered_run(tmp_path / "run", said, target)


def test_a_family_goes_from_answers_to_an_evaluated_draft(target, run, tmp_path):
    settings = prepare.Settings(max_length=128, held_out=4, draft_vocab_size=DRAFT_VOCAB)
    samples, _ = prepare.prepare(run, str(target), settings)
    assert samples.counts["train"] + samples.counts["held_out"] == CONVERSATIONS

    folder = run.local_path()
    shared = {"draft_vocab_size": DRAFT_VOCAB, "max_length": 128, "target_shard": "node", "dtype": "bf16", "epochs": 4}
    stopped = train(folder, target, logs=tmp_path, ranks=2, interruption=Interruption(3, rank=1), **shared)
    assert stopped.codes == [143, 143], stopped.said
    done = train(folder, target, logs=tmp_path, ranks=2, **shared)
    assert done.codes == [0, 0] and "going on from step-000003" in done.said[0], done.said
    assert np.isfinite(losses(folder)).all()
    held_out = [row["held_out"]["loss"] for row in rows(folder) if "held_out" in row]
    assert held_out[-1] < held_out[0]

    _, name, checkpoint = find_checkpoint(f"{folder}/checkpoints")
    extract(run, name, checkpoint, run.at("draft"), target=target, dtype="float32")
    verify(folder / "draft", target)
    tensors = load_file(folder / "draft/model.safetensors")
    assert tensors["d2t"].shape == (DRAFT_VOCAB,) and tensors["fc.weight"].dtype == torch.float32

    evaluation = Evaluation(open_store(folder), target, Settings(prompts=2, max_new_tokens=8))
    evaluation.measure_offline("cpu")
    part = evaluation.parts["offline"]
    assert part["tokens_equal"] and part["accept_length"] >= 1.0

"""A training run of each method, by the recipe: its settings, its ranks, its stop and resume, what it leaves behind."""

import json

import pytest

from spec.export.extract import extract, find_checkpoint
from spec.export.verify import verify
from spec.methods import METHODS
from tests.prepared import prepared_run
from tests.tiny_models import save_tiny_target
from tests.training_runs import Interruption, losses, rows, train

MASK = 319  # the tiny target's last token; prepared samples have those before
BLOCK = {"mask_token_id": MASK, "block_size": 4, "layers": 1, "features": 3, "anchors": 8}
OTHERS = {"without": ("draft_vocab_size", "steps")}  # of the tiny settings, which are EAGLE-3's
METHOD = {
    "dflash": {"method": "dflash", **BLOCK, **OTHERS},
    "dspark": {"method": "dspark", **BLOCK, **OTHERS, "markov_rank": 8, "confidence": 0.5, "initialise": "target"},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_tiny_target("llama", tmp_path_factory.mktemp("target"))


def samples(folder):
    return prepared_run(folder, vocab_size=MASK)


@pytest.fixture(scope="module", params=METHOD)
def finished(request, tmp_path_factory, target):
    """One rank, from the first step to the last."""
    folder = tmp_path_factory.mktemp(request.param)
    run = samples(folder / "run")
    outcome = train(run, target, logs=folder, **METHOD[request.param])
    assert outcome.codes == [0], outcome.said
    return request.param, run


def test_two_ranks_give_the_curve_of_one(finished, target, tmp_path):
    method, run = finished
    other = samples(tmp_path / "run")
    one = train(samples(tmp_path / "one"), target, logs=tmp_path, **METHOD[method], batch_size=2)
    two = train(other, target, logs=tmp_path, ranks=2, **METHOD[method])
    assert one.codes == [0] and two.codes == [0, 0], two.said
    for here, there in zip(losses(tmp_path / "one"), losses(other), strict=True):
        assert here == pytest.approx(there, rel=1e-5)


def test_stopped_and_resumed_the_losses_are_equal_bit_for_bit(finished, target, tmp_path):
    method, run = finished
    again = samples(tmp_path / "run")
    assert train(again, target, logs=tmp_path, interruption=Interruption(7), **METHOD[method]).codes == [143]
    assert train(again, target, logs=tmp_path, **METHOD[method]).codes == [0]
    assert losses(again) == losses(run)


def test_its_draft_is_exported_and_verified(finished, target, tmp_path):
    method, run = finished
    store, name, checkpoint = find_checkpoint(f"{run}/checkpoints")
    marker, _ = extract(store, name, checkpoint, store.at("draft"), target=target)
    assert verify(run / "draft", target).identity == marker.identity
    assert marker.facts["config"]["architectures"] == [METHODS[method].architecture]
    assert marker.facts["training"]["settings"]["method"] == method


def test_the_parts_of_the_loss_are_logged_apart(finished):
    method, run = finished
    row = rows(run)[0]
    parts = {name for name in row if name.endswith("_by_position")} - {"loss_by_position", "accuracy_by_position"}
    assert parts == ({"ce_by_position", "l1_by_position", "confidence_by_position"} if method == "dspark" else set())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "medusa"}, "method='medusa'; it is one of eagle3, dflash, dspark"),
        ({"decay_of": 3}, "no setting is called 'decay_of'"),
        ({"objective": "ce"}, "objective is a setting of EAGLE-3; this is DSpark"),
        ({"method": "dflash"}, "markov_rank is a setting of DSpark; this is DFlash"),
        ({"without": (*OTHERS["without"], "mask_token_id")}, "mask_token_id is not set"),
        ({"mask_token_id": 320}, "mask_token_id=320"),
        ({"mask_token_id": 5}, "token 5, which is mask_token_id"),
        ({"block_size": 60}, "the longest answer"),
        ({"features": 9}, "features of 9 layers"),
        ({"ce": 0, "l1": 0}, "nothing would be learnt"),
        ({"compile": True}, "compile=true"),
        ({"decay": True}, "decay=True"),
        ({"decay": float("nan")}, "decay=nan"),
        ({"ce": float("nan")}, "ce=nan"),
        ({"draft": {"rms_norm_eps": -1}}, "draft.rms_norm_eps=-1"),
        ({"draft": {"hidden_size": 32}}, "draft has no setting 'hidden_size'"),
    ],
)
def test_what_cannot_be_meant_is_one_line_before_anything_is_loaded(target, tmp_path, settings, said):
    outcome = train(samples(tmp_path / "run"), target, logs=tmp_path, **METHOD["dspark"] | settings)
    assert outcome.codes == [2]
    assert said in outcome.said[0] and outcome.said[0].count("\n") == 1, outcome.said


def test_llama_4_has_no_block_drafts(tmp_path):
    target = save_tiny_target("llama4", tmp_path / "target")
    outcome = train(samples(tmp_path / "run"), target, logs=tmp_path, **METHOD["dflash"])
    assert outcome.codes == [2] and "mllama4" in outcome.said[0]


def test_a_finished_eagle3_run_from_before_there_were_methods_is_found(tmp_path, target):
    run = prepared_run(tmp_path / "run")
    assert train(run, target, logs=tmp_path).codes == [0]
    marker = json.loads(sorted((run / "checkpoints").glob("step-*/checkpoint.json"))[-1].read_text())
    assert "method" not in marker["settings"]  # it would change the digest by which such runs are known
    outcome = train(run, target, logs=tmp_path, method="eagle3")
    assert outcome.codes == [0] and "already done" in outcome.said[0]

"""A user's mistake: one line, exit code 2, the same end on every rank, nothing written."""

import json
import re
import resource

import pytest
from omegaconf import OmegaConf

from spec import settings
from spec.errors import BadInput
from tests.prepared import prepared_run
from tests.tiny_models import save_tiny_target
from tests.training_runs import train


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_tiny_target("llama", tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return prepared_run(tmp_path_factory.mktemp("prepared") / "run")


def refused(outcome):
    """The one line in which all ranks together are told what is wrong."""
    assert set(outcome.codes) == {2}, outcome.said
    said = "".join(outcome.said)
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


def edited(folder, target, **changes):
    """A copy of the target's config with `changes`; a value of None removes a key."""
    config = json.loads((target / "config.json").read_text()) | changes
    (folder / "target").mkdir()
    (folder / "target/config.json").write_text(json.dumps(config))
    return folder / "target"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_wrong_key(run, target, tmp_path, ranks):
    line = refused(train(run, target, logs=tmp_path, ranks=ranks, gradient_acumulation_steps=2))
    assert "'gradient_acumulation_steps'; did you mean 'gradient_accumulation_steps'?" in line
    assert not (run / "checkpoints").exists()


def test_an_unknown_architecture(run, target, tmp_path):
    line = refused(train(run, edited(tmp_path, target, model_type="mamba"), logs=tmp_path, ranks=2))
    assert "'mamba' is not known here" in line and "qwen3_moe" in line


@pytest.mark.parametrize("layers", [2, 5, 6])
def test_a_target_too_shallow_for_three_feature_layers(run, target, tmp_path, layers):
    line = refused(train(run, edited(tmp_path, target, num_hidden_layers=layers), logs=tmp_path))
    assert f"{layers} layers is too shallow" in line


def test_a_draft_vocabulary_larger_than_the_targets(run, target, tmp_path):
    assert "a draft vocabulary of 321" in refused(train(run, target, logs=tmp_path, draft_vocab_size=321))


def test_another_draft_vocabulary_than_the_maps(run, target, tmp_path):
    line = refused(train(run, target, logs=tmp_path, draft_vocab_size=64))
    assert "set draft_vocab_size=128" in line


def test_a_vocabulary_map_of_another_target(target, tmp_path):
    run = prepared_run(tmp_path / "run", vocab_size=400)
    line = refused(train(run, target, logs=tmp_path, ranks=2))
    assert "a vocabulary of 400" in line and "320" in line and "another target" in line


def test_a_world_that_does_not_divide_into_nodes(run, target, tmp_path):
    outcome = train(run, target, logs=tmp_path, ranks=3, ranks_a_node=2, target_shard="node")
    assert "3 ranks do not divide into nodes of 1 and 2" in refused(outcome)


def test_samples_that_are_not_there(target, tmp_path):
    line = refused(train(tmp_path / "empty", target, logs=tmp_path, ranks=2))
    assert "run tools/prepare_data.py" in line


def test_damaged_samples(target, tmp_path):
    run = prepared_run(tmp_path / "run")
    ids = run / "samples/train/input_ids.npy"
    ids.write_bytes(ids.read_bytes()[:-4] + b"\1\0\0\0")
    line = refused(train(run, target, logs=tmp_path, ranks=2))
    assert "input_ids.npy" in line and "damaged" in line


def test_documents_longer_than_max_length(run, target, tmp_path):
    assert "prepare with --max-length 32" in refused(train(run, target, logs=tmp_path, max_length=32))


def test_a_missing_target(run, tmp_path):
    assert "no such file" in refused(train(run, tmp_path / "nowhere", logs=tmp_path, ranks=2))


def test_a_target_without_weights(run, target, tmp_path):
    line = refused(train(run, edited(tmp_path, target), logs=tmp_path, ranks=2))
    assert "safetensors" in line


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": {"learning_rate": 1e-3}}, "optimizer has no setting 'learning_rate'; there are"),
        ({"optimizer": {"_component_": "torch.optim.Adamw"}}, "optimizer._component_='torch.optim.Adamw'"),
        ({"lr": 1e-3}, "'lr'; did you mean 'optimizer.lr'?"),
        ({"draft": {"hidden_sise": 64}}, "did you mean 'hidden_size'?"),
        ({"draft": {"rms_norm_eps": "x"}}, "draft.rms_norm_eps='x'"),
        ({"draft": {"rope_parameters": {"rope_type": "nonsense"}}}, "rope_type is 'nonsense'; it is one of default"),
        ({"objective": "mse"}, "objective='mse'; it is one of ce, lk, hard"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"decay": 1.5}, "decay=1.5"),
        ({"epochs": None}, "training would never end"),
        ({"optimizer": 3}, "optimizer is a group of settings"),
        ({"seed": {"a": 1}}, "seed is one value"),
        ({"packed": "yes"}, "packed='yes'"),
        ({"run_dir": "???"}, "run_dir is not set"),
        ({"run_dir": 5}, "run_dir=5; it is a path"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"cache_features": True, "target_shard": "node"}, "set target_shard=none or cache_features=false"),
        ({"clip_grad_norm": -1}, "clip_grad_norm=-1"),
        ({"timeout_minutes": "soon"}, "timeout_minutes='soon'"),
    ],
)
def test_a_value_that_cannot_be_meant(run, target, tmp_path, settings, told):
    assert told in refused(train(run, target, logs=tmp_path, **settings))


def test_a_checkpoint_of_another_config(target, tmp_path):
    run = prepared_run(tmp_path / "run", documents=8)
    assert train(run, target, logs=tmp_path, max_steps=2).codes == [0]
    line = refused(train(run, target, logs=tmp_path, ranks=2, max_steps=2, optimizer={"lr": 2e-3}))
    assert "settings.optimizer.lr: 0.001 there, 0.002 asked" in line and "overwrite=true" in line
    outcome = train(run, target, logs=tmp_path, max_steps=2, optimizer={"lr": 2e-3}, overwrite=True)
    assert outcome.codes == [0], outcome.said
    marker = json.loads((run / "checkpoints/step-000002/checkpoint.json").read_text())
    assert marker["settings"]["optimizer"]["lr"] == 2e-3


def test_a_damaged_checkpoint(target, tmp_path):
    run = prepared_run(tmp_path / "run", documents=8)
    assert train(run, target, logs=tmp_path, max_steps=4, save_every=1, keep_checkpoints=4).codes == [0]
    (run / "checkpoints/step-000004/checkpoint.json").unlink()  # unfinished, so that there is something to go on with
    data = run / "checkpoints/step-000003/__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-100])
    line = refused(train(run, target, logs=tmp_path, ranks=2, max_steps=4))
    assert "step-000003/__0_0.distcp: missing or damaged" in line


@pytest.fixture
def little_room():
    """Files of 100 KB at most, as on a disk that is all but full, until it is called."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"save_every": 1}, "step-000001 could not be written"),
        ({"cache_features": True}, "set cache_features=false"),
    ],
)
def test_a_full_disk_is_one_line_and_nothing_is_lost(target, tmp_path, little_room, settings, told):
    run = prepared_run(tmp_path / "run", documents=8)
    given = {"max_steps": 2, "max_length": 512, "scratch": str(tmp_path / "scratch")} | settings
    outcome = train(run, target, logs=tmp_path, ranks=1, **given)
    assert outcome.codes == [75], outcome.said
    assert told in outcome.said[0] and "Traceback" not in outcome.said[0]
    little_room()
    assert train(run, target, logs=tmp_path, ranks=1, **given).codes == [0]


def test_a_full_disk_is_told_once_for_all_ranks(target, tmp_path, little_room):
    run = prepared_run(tmp_path / "run", documents=8)
    outcome = train(run, target, logs=tmp_path, ranks=2, max_steps=2, save_every=1)
    assert outcome.codes == [75, 75], outcome.said
    assert "".join(outcome.said).count("error: ") == 1


@pytest.mark.parametrize("fused", [False, True], ids=["looked at before", "skipped on the device"])
def test_a_diverging_run_stops_before_it_ruins_the_draft(target, tmp_path, fused):
    run = prepared_run(tmp_path / "run")
    how = {"optimizer": {"lr": 1e30, "fused": fused}, "clip_grad_norm": None, "log_every": 3, "save_every": 4}
    outcome = train(run, target, logs=tmp_path, ranks=2, **how)
    assert "lower optimizer.lr" in refused(outcome)
    assert not list(run.glob("checkpoints/step-*"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_warm_up_that_does_not_end(run, target, tmp_path, ranks):
    line = refused(train(run, target, logs=tmp_path, ranks=ranks, max_steps=4, lr_scheduler={"num_warmup_steps": 9}))
    assert "num_warmup_steps=9: warm-up does not end within the 4 steps" in line
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(
    "setting",
    [
        *('optimizer.lr="1e-4"', "optimizer.lr=abc", "optimizer.lr=-1", "optimizer.lr=0", "optimizer.lr=null"),
        *("optimizer.lr=.nan", "optimizer.betas=0.9", "optimizer.betas=[0.9,1.0]", "optimizer.weight_decay=-0.1"),
        *("lr_scheduler.num_warmup_steps=0.03", "lr_scheduler.num_warmup_steps=-1", "lr_scheduler.num_warmup_steps=a"),
        *("clip_grad_norm=true", "clip_grad_norm=.inf", "timeout_minutes=soon", "device=7", "scratch=7", "seed=true"),
        "decay=true",
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(setting):
    given = OmegaConf.from_dotlist(["run_dir=RUN", "target=DIR", setting])
    with pytest.raises(BadInput, match=re.escape(f"config: {setting.partition('=')[0]}=")):
        settings.complete(given)

"""A training that cannot be is refused by name before anything starts."""

import re
from pathlib import Path

import pytest

from spec.cluster import preflight_training
from spec.errors import BadInput
from spec.methods import METHODS
from spec.storage import open_store
from spec.storage.markers import Marker, digest_of, write_marker

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("words", ["epoch=2", "--epochs=2", "epochs 2", "optimiser.lr=1"])
def test_a_setting_that_the_recipe_does_not_have_is_named(words: str):
    known = "epochs=2 optimizer.lr=1e-4 metric_logger.log_dir=/tmp/x draft_vocab_size=null initialise_else=random"
    preflight_training.check_settings("train-options", known, ROOT, METHODS["eagle3"])
    with pytest.raises(BadInput, match=f"parameter train-options: {words.split()[0]}: no setting"):
        preflight_training.check_settings("train-options", words, ROOT, METHODS["eagle3"])


@pytest.mark.parametrize("word", ["epochs=two", "seed=[", "batch_size=1.5", "clip_grad_norm=inf", "optimizer.lr=abc"])
def test_a_value_that_is_none_of_the_setting_s_is_named(word: str):
    with pytest.raises(BadInput, match=f"parameter train-options: {re.escape(word)}: .* by default"):
        preflight_training.check_settings("train-options", f"lr_scheduler={{}} {word}", ROOT, METHODS["eagle3"])


def test_another_methods_setting_is_named():
    with pytest.raises(BadInput, match="parameter train-options: markov_rank=8: no setting of DFlash"):
        preflight_training.check_settings("train-options", "markov_rank=8", ROOT, METHODS["dflash"])


@pytest.mark.parametrize(
    ("config", "words", "method"),
    [
        ("smollm2/135M_eagle", "", "eagle3"),
        ("smollm2/135M_dspark", "epochs=2", "dspark"),
        ("smollm2/135M_eagle", "method=dflash mask_token_id=7", "dflash"),
    ],
)
def test_the_method_is_the_configs_or_the_options(config: str, words: str, method: str):
    assert preflight_training.method_of_training(ROOT / f"spec/configs/{config}.yaml", words).name == method


def test_the_options_lie_over_the_config_and_the_config_over_the_defaults():
    config = ROOT / "spec/configs/llama3/8B_dspark.yaml"
    settings = preflight_training.settings_of_training(config, "block_size=5 epochs=null", METHODS["dspark"], ROOT)
    assert (settings["block_size"], settings["epochs"]) == (5, None)
    assert (settings["mask_token_id"], settings["target_shard"]) == (128255, "none")
    assert (settings["markov_rank"], settings["batch_size"]) == (256, 1)


def test_what_training_is_to_begin_from_is_looked_for(tmp_path: Path, bucket: str):
    run, place, dspark = open_store(tmp_path), f"s3://{bucket}/drafts", METHODS["dspark"]
    asked = f"initialise={place} epochs=2"

    def told(words: str) -> str:
        return preflight_training.check_start("train-options", words, dspark, run)

    with pytest.raises(BadInput, match="parameter train-options: .*no draft is there; initialise_else=random"):
        told(asked)
    assert "has no DSpark draft to begin from yet" in told(f"{asked} initialise_else=random")
    open_store(place).write("config.json", b'{"architectures": ["LlamaForCausalLMEagle3"]}')
    with pytest.raises(BadInput, match="holds a draft of EAGLE-3, which none of DSpark begins from"):
        told(asked)
    assert "begins as random" in told(f"{asked} initialise_else=random")
    open_store(place).write("config.json", b'{"architectures": ["DFlashDraftModel"]}')
    assert told(asked) == told("initialise=target") == told("") == ""
    for elsewhere in ("./draft", "hf://ORG/NAME"):
        with pytest.raises(BadInput, match="trainers ask no hub and share no directory"):
            told(f"initialise={elsewhere}")
    run.write("start/start.json", b"{}")  # this run has begun
    assert told("initialise=s3://nowhere/at-all") == ""


def test_a_trained_run_refuses_other_settings(tmp_path: Path):
    store = open_store(tmp_path)
    preflight_training.check_same_training("train-options", "epochs=3", store)
    settings = {"epochs": 2, "optimizer": {"lr": 1e-4}, "max_steps": None}
    facts = {"training": {"settings": settings}}
    marker = Marker(step="extract", digest=digest_of("extract", {}, {}), settings={}, inputs={}, facts=facts)
    write_marker(store, "draft/draft.json", marker)
    same = "epochs=2 optimizer.lr=1e-4 max_steps=null save_every=7 optimizer.lr=0.0001"
    preflight_training.check_same_training("train-options", same, store)
    for word, there in (("epochs=3", "epochs=2"), ("optimizer.lr=1e-3", "optimizer.lr=0.0001")):
        with pytest.raises(BadInput, match=f"parameter train-options: {word}: .* trained with {there}"):
            preflight_training.check_same_training("train-options", word, store)

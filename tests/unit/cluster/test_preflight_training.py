"""A training that cannot be is refused by name before anything starts."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from transformers import AutoConfig

from spec.cluster import preflight_training
from spec.errors import BadInput
from spec.storage import open_store
from spec.storage.markers import Marker, digest_of, write_marker

ROOT = Path(__file__).parents[3]


EAGLE, DFLASH, DSPARK = (ROOT / f"spec/configs/llama3/8B_{name}.yaml" for name in ("eagle", "dflash", "dspark"))


def asked(words: str, config: Path = EAGLE) -> DictConfig:
    return preflight_training.settings_of("train-options", config, words)


def drafted(words: str, config: Path, gpus: int = 8, **target: Any) -> dict[str, Any]:
    sizes = json.loads((ROOT / "spec/configs/llama3/8B.json").read_text()) | target
    made = AutoConfig.for_model(**sizes)
    return preflight_training.check_draft("config and train-options", asked(words, config), made, gpus)


def test_settings_that_the_recipe_has_are_taken_as_it_takes_them():
    words = "epochs=2 optimizer.lr=1e-4 metric_logger.log_dir=/tmp/x draft_vocab_size=null lr_scheduler={}"
    taken = asked(words)
    assert (taken.epochs, taken.optimizer.lr, taken.draft_vocab_size, taken.method) == (2, 1e-4, None, "eagle3")


@pytest.mark.parametrize("words", ["epoch=2", "--epochs=2", "epochs 2", "optimiser.lr=1", "run_dir=s3://elsewhere"])
def test_a_setting_that_is_not_to_be_given_is_named(words: str):
    named = re.split("[ .=]", words)[0]
    with pytest.raises(BadInput, match=f"parameter train-options: .*{named}"):
        asked(words)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        *((EAGLE, word) for word in ("epochs=two", "batch_size=1.5", "clip_grad_norm=inf", "optimizer.lr=abc")),
        *((EAGLE, word) for word in ("epochs=-1", "max_steps=-1", "max_steps=abc", "batch_size=0", "max_length=null")),
        *((EAGLE, word) for word in ("objective=foo", "decay=2", "steps=0", "save_every=0", "initialise=there")),
        *((DSPARK, word) for word in ("markov_rank=0", "weighting=foo", "block_size=0", "confidence=-1", "ce=x")),
    ],
)
def test_a_value_that_is_none_of_the_setting_s_is_named(config: Path, word: str):
    with pytest.raises(BadInput, match=f"parameter train-options: config: {word.partition('=')[0]}="):
        asked(word, config)


@pytest.mark.parametrize(
    "word",
    ["seed=[", "initialise=s3://b/day=1/draft", "optimizer.betas[0]=0.8", "method=${nope}", "seed=${oc.env:HOME}"],
)
def test_what_cannot_be_read_is_one_line(word: str):
    with pytest.raises(BadInput, match="^parameter train-options: .*") as refused:
        asked(f"epochs=2 {word}")
    assert re.split(r"[=.]", word)[0] in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("words", ["epochs=None max_steps=3", "draft_vocab_size=null", "optimizer.lr=1e-4", "seed=007"])
def test_words_are_read_as_the_recipe_s_command_line_is(words: str, monkeypatch: pytest.MonkeyPatch):
    from spec import components, settings

    monkeypatch.setattr(sys, "argv", ["recipe", "--config", str(EAGLE), *words.split()])
    assert settings.read(EAGLE, words.split()) == components.from_command_line()


def test_heads_are_a_gpu_s_matter_in_half_precision_alone():
    drafted("draft.head_dim=36 dtype=fp32", EAGLE)
    drafted("draft.head_dim=36", EAGLE, gpus=0)


def test_another_methods_setting_is_named():
    with pytest.raises(BadInput, match="parameter train-options: .*markov_rank.* is a setting of DSpark; .* EAGLE-3"):
        asked("markov_rank=8")


@pytest.mark.parametrize(
    ("config", "words", "method"),
    [
        ("smollm2/135M_eagle", "", "eagle3"),
        ("smollm2/135M_dspark", "epochs=2", "dspark"),
        ("defaults", "method=dflash mask_token_id=7", "dflash"),
    ],
)
def test_the_method_is_the_configs_or_the_options(config: str, words: str, method: str):
    assert asked(words, ROOT / f"spec/configs/{config}.yaml").method == method


def test_the_options_lie_over_the_config_and_the_config_over_the_defaults():
    settings = asked("block_size=5 epochs=null max_steps=9", DSPARK)
    assert (settings.block_size, settings.epochs) == (5, None)
    assert (settings.mask_token_id, settings.target_shard) == (128255, "none")
    assert (settings.markov_rank, settings.batch_size) == (256, 1)


def test_the_draft_of_the_settings_is_made_for_the_target_s_config():
    assert drafted("block_size=5", DSPARK)["block_size"] == 5
    assert drafted("", EAGLE)["hidden_size"] == 4096


@pytest.mark.parametrize(
    ("config", "words", "target", "message"),
    [
        (EAGLE, "draft_vocab_size=200000", {}, "a draft vocabulary of 200000 does not fit"),
        (EAGLE, "", {"num_hidden_layers": 2}, "2 layers is too shallow"),
        (EAGLE, "draft.intermediate_size=0", {}, "draft.intermediate_size=0"),
        (EAGLE, "draft.num_hidden_layers=1000000000", {}, "num_hidden_layers is 1000000000; a draft has at most 256"),
        (EAGLE, "draft.rope_parameters.rope_type=linear", {}, "draft.rope_parameters"),
        (EAGLE, "initialise=target draft.fc_norm=true", {}, "draft.fc_norm=false or another start"),
        (DSPARK, "mask_token_id=128256", {}, "one of the 128256 rows"),
        (EAGLE, "draft.head_dim=36", {}, "the draft has a head_dim of 36: .*take dtype=fp32 or another draft.head_dim"),
        (EAGLE, "draft.head_dim=64", {"head_dim": 264}, "the target has a head_dim of 264: .* take target_dtype=fp32"),
        (DSPARK, "layers=1000", {}, "config: layers is 1000; a draft has at most 256"),
        (DSPARK, "features=1000000000", {}, "features of 1000000000 layers"),
        (DSPARK, "features=40", {}, "features"),
        (DSPARK, "initialise=target layers=40", {}, "take initialise=random"),
        (DFLASH, "", {"model_type": "llama4_text"}, "a Llama 4 target has no block drafts: .*method=eagle3"),
        (DSPARK, "", {"model_type": "llama4_text"}, "a Llama 4 target has no block drafts: .*method=eagle3"),
    ],
)
def test_a_draft_that_the_target_does_not_fit_is_refused(config: Path, words: str, target: dict, message: str):
    with pytest.raises(BadInput, match=f"parameter config and train-options: .*{message}"):
        drafted(words, config, **target)


def test_nothing_of_it_needs_torch(tmp_path: Path):
    """Preflight's image has none."""
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; "
        "from spec.cluster.preflight import config_of_target; from spec.cluster import preflight_training as asked; "
        "config = Path('spec/configs/llama4/scout_17B_16E_eagle.yaml'); "
        "target = config_of_target('ORG/NAME', 'main', Path(sys.argv[1])); "
        "print(asked.check_draft('config', asked.settings_of('train-options', config, ''), target, 8))"
    )
    sizes = (ROOT / "spec/configs/llama4/scout_17B_16E.json").read_text()
    (tmp_path / "config.json").write_text(sizes)
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True, capture_output=True, check=False)
    assert ran.returncode == 0 and "'hidden_size': 5120" in ran.stdout, ran.stderr


def test_what_training_is_to_begin_from_is_looked_for(tmp_path: Path, bucket: str):
    run, place = open_store(tmp_path), f"s3://{bucket}/drafts"
    begun = f"initialise={place} epochs=2"

    def told(words: str) -> str:
        return preflight_training.check_start("train-options", asked(words, DSPARK), run)

    with pytest.raises(BadInput, match="parameter train-options: .*no draft is there; initialise_else=random"):
        told(begun)
    assert "has no DSpark draft to begin from yet" in told(f"{begun} initialise_else=random")
    open_store(place).write("config.json", b'{"architectures": ["LlamaForCausalLMEagle3"]}')
    with pytest.raises(BadInput, match="holds a draft of EAGLE-3, which none of DSpark begins from"):
        told(begun)
    assert "begins as random" in told(f"{begun} initialise_else=random")
    open_store(place).write("config.json", b'{"architectures": ["DFlashDraftModel"]}')
    assert told(begun) == told("initialise=target") == told("") == ""
    for elsewhere in ("./draft", "hf://ORG/NAME"):
        with pytest.raises(BadInput, match="trainers ask no hub and share no directory"):
            told(f"initialise={elsewhere}")
    run.write("start/start.json", b"{}")  # this run has begun
    assert told("initialise=s3://nowhere/at-all") == ""


def test_a_trained_run_refuses_other_settings(tmp_path: Path):
    store = open_store(tmp_path)
    preflight_training.check_same_training("train-options", "epochs=3", asked("epochs=3"), store)
    settings = {"epochs": 2, "optimizer": {"lr": 1e-4}, "max_steps": None}
    facts = {"training": {"settings": settings}}
    marker = Marker(step="extract", digest=digest_of("extract", {}, {}), settings={}, inputs={}, facts=facts)
    write_marker(store, "draft/draft.json", marker)
    same = "epochs=2 optimizer.lr=1e-4 max_steps=null save_every=7 optimizer.lr=0.0001"
    preflight_training.check_same_training("train-options", same, asked(same), store)
    with pytest.raises(BadInput, match="parameter config: method=dspark: this run was trained with eagle3"):
        preflight_training.check_same_training("train-options", "", asked("", DSPARK), store)
    for word, there in (("epochs=3", "epochs=2"), ("optimizer.lr=1e-3", "optimizer.lr=0.0001")):
        with pytest.raises(BadInput, match=f"parameter train-options: {word}: .* trained with {there}"):
            preflight_training.check_same_training("train-options", word, asked(word), store)

"""What a user of tools/plan.py is told: the true sizes, whether it fits, what to change, and one line for a mistake."""

import pytest

from spec.errors import BadInput
from spec.methods import METHODS
from spec.planning.advice import verdict
from spec.planning.plan import Machines, measure, plan, read_plan_config
from spec.planning.show import show
from spec.settings import DEFAULTS
from tests.command_line import run_tool

CONFIGS = DEFAULTS.parent
NODE = Machines(1, 8, 80.0)


def planned(name, *overrides, machines=NODE):
    cfg, target = read_plan_config(CONFIGS / f"{name}.yaml", ["steps=2", *overrides])  # fewer steps: less to rehearse
    return plan(cfg, measure(cfg, target), machines), cfg


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [("llama3/8B_eagle", 8.03, 8.03), ("llama4/scout_17B_16E_eagle", 107.8, 17.2), ("qwen3/30B_A3B_eagle", 30.5, 3.3)],
)
def test_the_targets_are_as_large_as_their_names_say(name, billions, active):
    result, _ = planned(name, "max_length=128")
    assert result.sizes.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert (sum(result.sizes.active) + result.sizes.outside) / 1e9 == pytest.approx(active, rel=0.05)


def test_a_target_whole_on_each_gpu_fits_or_the_advice_is_to_split_it():
    result, cfg = planned("llama3/70B_eagle", "target_shard=none")
    assert not result.fits and verdict(result, cfg).endswith("set target_shard=node")
    result, cfg = planned("llama3/70B_eagle")
    assert result.fits and verdict(result, cfg).startswith("fits: ")
    assert "verdict     fits" in show(result, cfg)


def test_too_few_gpus_for_the_target_are_told_how_many_nodes():
    result, cfg = planned("qwen3/235B_A22B_eagle", machines=Machines(1, 4, 40.0))
    assert verdict(result, cfg).endswith("; take 8 nodes")


def test_memory_and_time_move_the_way_they_must():
    base, cfg = planned("llama3/8B_eagle", "activation_checkpointing=true")
    longer, _ = planned("llama3/8B_eagle", "activation_checkpointing=true", "max_length=4096")
    assert base.peak < longer.peak < 2 * base.peak and longer.step_seconds > base.step_seconds
    two = plan(cfg, base.sizes, Machines(2, 8))
    assert two.peak < base.peak and 1 < two.tokens_per_second / base.tokens_per_second < 2


def test_what_a_draft_costs_the_server_is_told():
    cfg, target = read_plan_config(CONFIGS / "qwen3/8B_dspark.yaml", ["anchors=4", "max_length=64"])
    said = show(plan(cfg, measure(cfg, target), NODE), cfg)
    tables, keys = 2 * 151_936 * 256, 2 * 5 * 8 * 128  # the Markov head's; of a token in five layers
    assert f"markov_head {2 * tables / 1e9:.2f})" in said
    assert f"{2 * keys * 1e5 / 1e9:.2f} GB of the draft's keys and values for 100,000 tokens" in said


def test_a_directory_of_a_target_gives_its_own_sizes(tmp_path):
    sizes = (CONFIGS / "qwen3/8B.json").read_text()
    (tmp_path / "config.json").write_text(sizes.replace('"num_hidden_layers": 36', '"num_hidden_layers": 9'))
    _, target = read_plan_config(CONFIGS / "llama3/8B_eagle.yaml", [f"target={tmp_path}"])
    assert (target.model_type, target.num_hidden_layers) == ("qwen3", 9)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["max_lenth=2"], "did you mean 'max_length'"),
        (["target=nowhere"], "nowhere: no such file"),
        (["draft_vocab_size=200000"], "a draft vocabulary of 200000 does not fit"),
        (["="], "key=value"),
        (["seed=${nope}"], "'nope' not found"),
        (["draft.num_attention_heads=7"], "7 heads, 8 of keys"),
        (["draft.head_dim=wide"], "draft.head_dim='wide'"),
        (["draft.hidden_size=2048"], "must be the target's 4096"),
        (["draft.feature_layers=[1,2,3]"], "draft has no setting 'feature_layers'"),
        (["target=5"], "target=5; it is a path"),
    ],
)
def test_a_mistake_is_named(overrides, said):
    with pytest.raises(BadInput, match=said):
        cfg, target = read_plan_config(CONFIGS / "llama3/8B_eagle.yaml", overrides)
        measure(cfg, target)


@pytest.mark.parametrize("config", ["llama3/8B_eagle", "qwen3/8B_dflash"])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        *((f"draft.rms_norm_eps={value}", "draft.rms_norm_eps=") for value in ("x", "-1", "0.0", "true", ".nan")),
        *((f"draft.rope_parameters={value}", "draft.rope_parameters=") for value in ("5", "null", "[1]")),
        ("draft.rope_parameters.rope_type=nonsense", "rope_type is 'nonsense'; it is one of default, linear"),
        ("draft.rope_parameters={rope_type: default}", "rope_theta is None"),
        ("draft.rope_parameters={rope_type: default, rope_theta: true}", "rope_theta is True"),
        ("draft.rope_parameters={rope_type: llama3, rope_theta: 1e6}", "rope_parameters.factor is None"),
        ("draft.rope_parameters={rope_type: linear, rope_theta: 1e6, factor: -2.0}", "rope_parameters.factor is -2.0"),
        ("draft.rope_parameters={rope_type: yarn, rope_theta: 1e6, factor: 2.0, beta_fast: wide}", "no such RoPE"),
        ("draft.rope_parameters={rope_type: default, rope_theta: 1e-300}", "frequencies"),
        ("draft.max_position_embeddings=true", "draft.max_position_embeddings=True"),
        ("draft.num_attention_heads=true", "draft.num_attention_heads=True"),
        ("decay=true", "decay=True"),
    ],
)
def test_a_number_of_the_drafts_own_that_cannot_be_meant_is_named(config, override, said):
    with pytest.raises(BadInput) as refused:
        cfg, target = read_plan_config(CONFIGS / f"{config}.yaml", [override])
        METHODS[cfg.method].training(cfg, target)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("config", ["qwen3/30B_A3B_dspark", "llama4/scout_17B_16E_eagle"])
def test_a_start_from_a_target_with_experts_is_refused_without_its_weights(config):
    cfg, target = read_plan_config(CONFIGS / f"{config}.yaml", ["initialise=target"])
    with pytest.raises(BadInput, match="has others or fewer; take initialise=random"):
        METHODS[cfg.method].training(cfg, target)


def test_a_whole_number_of_layers_is_not_true():
    with pytest.raises(BadInput, match="draft.num_hidden_layers=True"):
        planned("llama3/8B_eagle", "draft.num_hidden_layers=true")


def test_the_tool_says_so_in_one_line():
    done = run_tool("plan", "nowhere.yaml")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ")
    assert "nowhere.yaml': no such file" in done.stderr

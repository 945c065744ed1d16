import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from spec import components, settings
from spec.errors import BadInput
from spec.methods import METHODS
from spec.methods.eagle3.config import DraftConfig
from spec.methods.eagle3.draft import EagleDraft
from spec.planning.plan import read_plan_config
from tests.architectures import TARGETS

CONFIGS = Path(settings.DEFAULTS).parent
# Feature layers (SGLang's output convention) and parameters of the exported draft, in millions.
EXPECTED = {
    "llama3/8B_eagle": ([1, 15, 28], 425),
    "llama3/70B_eagle": ([1, 39, 76], 1403),
    "llama4/scout_17B_16E_eagle": ([1, 23, 44], 468),
    "qwen3/8B_eagle": ([1, 17, 32], 400),
    "qwen3/32B_eagle": ([1, 31, 60], 783),
    "qwen3/30B_A3B_eagle": ([1, 23, 44], 145),
    "qwen3/235B_A22B_eagle": ([1, 46, 90], 441),
}
# Of block drafts: feature layers, drafts a round, mask token and parameters in millions.
BLOCKS = {
    "llama3/8B_dflash": ([1, 8, 15, 22, 29], 9, 128255, 1174),
    "llama3/8B_dspark": ([1, 8, 15, 22, 29], 7, 128255, 1240),
    "qwen3/8B_dflash": ([1, 9, 17, 25, 33], 15, 151669, 1049),
    "qwen3/8B_dspark": ([1, 9, 17, 25, 33], 7, 151669, 1126),
    "qwen3/30B_A3B_dspark": ([1, 12, 23, 34, 45], 7, 151669, 382),
}


def test_every_config_is_judged_here():
    there = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.glob("*/*.yaml")}
    demos = {f"smollm2/135M_{method}" for method in ("eagle", "dflash", "dspark")}
    assert there - demos == set(EXPECTED) | set(BLOCKS)
    assert set(TARGETS) == set(EXPECTED)


@pytest.mark.parametrize("name", TARGETS)
def test_a_config_builds_its_draft_at_the_targets_true_size(name):
    given = OmegaConf.load(CONFIGS / f"{name}.yaml")
    cfg = settings.complete(OmegaConf.merge(given, {"run_dir": "RUN", "target": "DIR"}))
    target = TARGETS[name]
    config = DraftConfig.for_target(target, cfg.draft_vocab_size, **cfg.draft)
    with torch.device("meta"):
        draft = EagleDraft(config)

    h, heads, kv, dim = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    assert {key: tuple(value.shape) for key, value in draft.state_dict().items()} == {
        "fc.weight": (h, 3 * target.hidden_size),
        "midlayer.input_layernorm.weight": (h,),
        "midlayer.hidden_norm.weight": (h,),
        "midlayer.post_attention_layernorm.weight": (h,),
        "midlayer.self_attn.q_proj.weight": (heads * dim, 2 * h),
        "midlayer.self_attn.k_proj.weight": (kv * dim, 2 * h),
        "midlayer.self_attn.v_proj.weight": (kv * dim, 2 * h),
        "midlayer.self_attn.o_proj.weight": (h, heads * dim),
        "midlayer.mlp.gate_proj.weight": (target.intermediate_size, h),
        "midlayer.mlp.up_proj.weight": (target.intermediate_size, h),
        "midlayer.mlp.down_proj.weight": (h, target.intermediate_size),
        "norm.weight": (h,),
        "lm_head.weight": (32000, h),
        "d2t": (32000,),
        "t2d": (target.vocab_size,),
    }
    layers, millions = EXPECTED[name]
    assert list(config.feature_layers) == layers
    assert round(sum(p.numel() for p in draft.parameters()) / 1e6) == millions
    assert config.max_position_embeddings == min(target.max_position_embeddings, 131072)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_config_builds_its_block_draft_at_the_targets_true_size(name):
    given = OmegaConf.load(CONFIGS / f"{name}.yaml")
    cfg = settings.complete(OmegaConf.merge(given, {"run_dir": "RUN", "target": "DIR"}))
    method = METHODS[cfg.method].training(cfg, TARGETS[name.rpartition("_")[0] + "_eagle"])
    draft = method.build("meta")
    layers, drafts, mask, millions = BLOCKS[name]
    assert (list(method.config.feature_layers), method.positions, method.config.mask_token_id) == (layers, drafts, mask)
    assert round(sum(p.numel() for p in draft.parameters()) / 1e6) == millions


def test_scout_has_the_published_hyperparameters():
    cfg = settings.complete(
        OmegaConf.merge(
            OmegaConf.load(CONFIGS / "llama4/scout_17B_16E_eagle.yaml"), {"run_dir": "RUN", "target": "DIR"}
        )
    )
    assert (cfg.optimizer.lr, list(cfg.optimizer.betas), cfg.optimizer.weight_decay) == (5e-5, [0.9, 0.95], 0.0)
    assert (cfg.lr_scheduler.num_warmup_steps, cfg.max_steps) == (600, 6910)
    assert (cfg.batch_size, cfg.max_length, cfg.dtype, cfg.activation_checkpointing) == (1, 2048, "bf16", True)


@pytest.mark.parametrize("content", [b"5", b"- a\n- b\n", b"\xff\xfe\0", b"a: [1\n"])
def test_what_is_no_file_of_settings_is_refused(tmp_path, monkeypatch, content):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["recipe", "--config", str(file)])
    for read in (components.from_command_line, lambda: read_plan_config(file, [])):
        with pytest.raises(BadInput, match="config: "):
            read()

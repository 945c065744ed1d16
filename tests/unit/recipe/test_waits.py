"""The recipe's step hands its work over and waits for nothing, whatever the method; what becomes of it is read when
it logs or saves, and a gradient that is not finite leaves no checkpoint.
"""

import pytest
import torch
from omegaconf import OmegaConf
from torch.distributed.fsdp import FSDPModule

from spec.eagle_full_finetune_distributed import EagleFullFinetuneRecipeDistributed
from tests.forked import forked
from tests.no_waits import NoWaits, Waits
from tests.prepared import prepared_run
from tests.tiny_models import save_tiny_target
from tests.training_runs import TINY, rows, train

MASK = 319  # the tiny target's last token; prepared samples have those before
BLOCK = {"mask_token_id": MASK, "block_size": 4, "layers": 2, "features": 3, "anchors": 8, "evaluate_every": None}
FUSED = {"optimizer": {"lr": 1e-3, "fused": True}}  # as on a GPU
WAYS = {
    "eagle3": {},
    "eagle3, accumulated and begun from the target": {"gradient_accumulation_steps": 2, "initialise": "target"},
    "eagle3, two layers, whole vocabulary, recomputed": {
        **{"draft": {"num_hidden_layers": 2, "fc_norm": True, "norm_output": True}, "draft_vocab_size": None},
        **{"activation_checkpointing": True, "objective": "lk", "batch_size": 2},
    },
    "dflash": {"method": "dflash", **BLOCK},
    "dflash, dpace, recomputed": {"method": "dflash", **BLOCK, "weighting": "dpace", "activation_checkpointing": True},
    "dspark, confidence head, accumulated": {
        **{"method": "dspark", **BLOCK, "markov_rank": 8, "confidence": 0.5},
        **{"gradient_accumulation_steps": 2, "initialise": "target"},
    },
    "dspark, recomputed, not packed": {
        **{"method": "dspark", **BLOCK, "markov_rank": 8},
        **{"activation_checkpointing": True, "packed": False, "batch_size": 2},
    },
}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_tiny_target("llama", tmp_path_factory.mktemp("target"))


def recipe_of(folder, target, **given):
    run = prepared_run(folder / "run", vocab_size=MASK if "method" in given else MASK + 1)
    cfg = TINY | {"run_dir": str(run), "target": str(target)} | FUSED | given
    if "method" in given:
        cfg = {name: value for name, value in cfg.items() if name not in ("draft_vocab_size", "steps")}
    recipe = EagleFullFinetuneRecipeDistributed(OmegaConf.create(cfg))
    recipe.setup()
    return recipe


@pytest.mark.parametrize("given", WAYS.values(), ids=list(WAYS))
@forked
def test_a_step_waits_for_nothing_until_it_logs(tmp_path, target, given):
    recipe = recipe_of(tmp_path, target, **given)
    batches = recipe.train_data.epoch(0)
    ready = [next(batches) for _ in range(3)]
    recipe.train_step(ready[0])
    with NoWaits():
        for its in ready[1:]:
            recipe.train_step(its)
        with pytest.raises(Waits):
            recipe._log()
    batches.close()


@forked
def test_a_cpu_run_on_a_machine_with_a_gpu_stays_on_the_cpu(tmp_path, target):
    accelerator = torch._C._get_accelerator
    torch._C._get_accelerator = lambda *_: torch.device("cuda")
    try:
        recipe = recipe_of(tmp_path, target)
    finally:
        torch._C._get_accelerator = accelerator
    assert isinstance(recipe.draft, FSDPModule)
    assert {parameter.device_mesh.device_type for parameter in recipe.draft.parameters()} == {"cpu"}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("often", [{"log_every": 3}, {"log_every": 100, "save_every": 4}], ids=["log", "save"])
def test_a_gradient_that_is_not_finite_ends_the_run_at_the_next_log_or_save(tmp_path, target, often, ranks):
    """With the update of step 1 the draft is beyond all numbers: step 2 is the first whose gradient is."""
    run = prepared_run(tmp_path / "run", documents=96)
    given = {"optimizer": {"lr": 1e30, "fused": True}, "evaluate_every": None, "save_every": 100} | often
    outcome = train(run, target, logs=tmp_path, ranks=ranks, **given, lr_scheduler={"num_warmup_steps": 0})
    assert outcome.codes == [2] * ranks, outcome.said
    assert "step 2: the gradient is" in outcome.said[0] and outcome.said[0].count("error:") == 1
    assert not list((run / "checkpoints").glob("step-*"))
    assert rows(run) == []  # a loss of numbers that are none is not worth a row

"""Which of the target's layers a block draft reads: the same in training, in what is exported, and in the server."""

import numpy as np
import torch

from spec.methods import METHODS
from spec.methods.block.config import BlockDraftConfig
from spec.methods.block.draft import BlockDraft
from spec.methods.block.step import observe
from spec.target.frozen import FrozenTarget
from spec.training.batch import collate
from tests.tiny_models import save_tiny_target, tiny_target

READ = (1, 3, 4)  # 0-based layers whose outputs SGLang captures for `target_layer_ids` of these numbers


def test_training_reads_the_outputs_of_the_layers_that_the_server_is_told(tmp_path):
    target = FrozenTarget.load(save_tiny_target("llama", tmp_path, num_hidden_layers=6), dtype=torch.float32)
    asked = {"layers": 1, "block_size": 4, "features": 3, "mask_token_id": 319, "feature_layers": READ}
    draft = BlockDraft(BlockDraftConfig.for_target(target.text_config, **asked))
    ids = np.arange(40, 52)
    seen = observe(draft, target, collate([[(ids, ids > 45)]]), keep_last=False)
    with torch.no_grad():
        states = tiny_target("llama", num_hidden_layers=6)(
            torch.from_numpy(ids)[None], output_hidden_states=True
        ).hidden_states  # of the embedding first
    torch.testing.assert_close(seen.aux, torch.cat([states[layer + 1][0] for layer in READ], -1), atol=1e-5, rtol=1e-5)
    assert METHODS["dflash"].server_config(draft, "float32", 64)["dflash_config"]["target_layer_ids"] == list(READ)

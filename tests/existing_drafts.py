"""Drafts that are there already: exported by us, or as others publish them, without our marker and our spellings."""

import json
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from spec import settings
from spec.export import verify
from spec.export.export import export
from spec.methods import METHODS
from spec.storage import open_store
from spec.target.families import read_config, text_config_of
from tests.training_runs import TINY

BLOCK = {"mask_token_id": 319, "block_size": 4, "layers": 1, "features": 3, "anchors": 8}
METHOD = {
    "eagle3": {"method": "eagle3"},
    "dflash": {"method": "dflash", **BLOCK},
    "dspark": {"method": "dspark", **BLOCK, "markov_rank": 8, "confidence": 0.5},
}


def tiny_training(method: str, target: Path, **more):
    """The method's part of a tiny run, as the recipe opens it."""
    given = {
        name: value for name, value in TINY.items() if method == "eagle3" or name not in ("draft_vocab_size", "steps")
    }
    given |= {"run_dir": "RUN", "target": str(target)} | METHOD[method] | more
    cfg = settings.complete(OmegaConf.create(given))
    return METHODS[method].training(cfg, text_config_of(read_config(target)))


def random_draft(method: str, target: Path, *, seed: int = 7, **more):
    """Every tensor random, norms too; EAGLE-3's vocabulary every second token and some."""
    training = tiny_training(method, target, **more)
    torch.manual_seed(seed)
    draft = training.build("cpu")
    for parameter in draft.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    if method == "eagle3" and not draft.config.whole_vocabulary:
        chosen = torch.arange(0, 2 * 128, 2)
        t2d = torch.zeros(320, dtype=torch.bool)
        t2d[chosen] = True
        draft.set_vocabulary(chosen - torch.arange(128), t2d)
    return draft


def exported(method: str, target: Path, folder: Path, draft=None, /, *, dtype="bfloat16", lineage=None, **more) -> Path:
    """An export of ours, complete with its marker."""
    way = METHODS[method]
    facts = verify.target_facts(way, target)
    asked = {"dtype": dtype, "context_length": 512, "inputs": {}, "lineage": lineage or {}}
    export(way, draft or random_draft(method, target, **more), open_store(folder), target=facts, **asked)
    return folder


def as_others_publish(folder: Path, **config) -> Path:
    """An export of ours made what others publish: no marker, older spellings, no more in its config than the server
    needs, the target's embedding beside the weights, EAGLE-3's layer by its newer name; `config` over it."""
    (folder / "draft.json").unlink()
    there = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "dtype", "rope_scaling", "attention_bias", "mlp_bias", "layer_types", "hidden_act"):
        there.pop(name, None)
    there = {name: value for name, value in (there | config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(there))
    weights = load_file(folder / "model.safetensors")
    weights = {name.replace("midlayer.", "layers.0."): weight for name, weight in weights.items() if name != "t2d"}
    if "d2t" in weights and not weights["d2t"].any():  # the whole vocabulary
        del weights["d2t"]
    weights["embed_tokens.weight"] = torch.zeros(there["vocab_size"], there["hidden_size"], dtype=torch.bfloat16)
    save_file(weights, folder / "model.safetensors")
    return folder


def in_several_files(folder: Path) -> Path:
    """A draft's weights dealt out to two files with an index, as large ones are published."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    of = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(sorted(weights))}
    for file in set(of.values()):
        save_file({name: its for name, its in weights.items() if of[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of}))
    return folder

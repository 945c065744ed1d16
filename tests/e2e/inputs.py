"""What the runs begin with: a tiny random target and prompts, in the bucket that the overlay `local` names."""

import json
from pathlib import Path

from spec.storage import Store

PRINTABLE = 94  # the tokenizer's first ids are the characters from ! to ~
PROMPTS = 2000


def upload(store: Store, scratch: Path) -> None:
    """Put `target/` and `prompts.jsonl` below `store`, unless they are there."""
    if store.exists("prompts.jsonl"):
        return
    folder = save_target(scratch / "target")
    for path in sorted(folder.iterdir()):
        store.upload(f"target/{path.name}", path)
    lines = (json.dumps({"prompt": f"Tell me of number {number}."}) for number in range(PROMPTS))
    store.write("prompts.jsonl", "".join(line + "\n" for line in lines).encode())


def save_target(folder: Path) -> Path:
    """A target with something to learn: each token follows mostly, not always, from the one before.

    It says printable characters alone, so that its answers read back as the tokens they were.
    """
    from safetensors.torch import load_file, save_file  # torch takes its seconds, and only the first run needs it

    from tests.tiny_models import save_tiny_target

    save_tiny_target("llama", folder, tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][PRINTABLE:] = 0.0
    weights["model.embed_tokens.weight"] *= 4
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] *= 0.05
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

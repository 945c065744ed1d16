"""What the runs begin with: a tiny random target and prompts, in the bucket that the overlay `local` names."""

import json
from pathlib import Path

from spec.storage import Store

PROMPTS = 2000


def upload(store: Store, scratch: Path) -> None:
    """Put `target/` and `prompts.jsonl` below `store`, unless they are there."""
    if store.exists("prompts.jsonl"):
        return
    from tests.tiny_models import save_learnable_target  # torch takes its seconds, and only the first run needs it

    folder = save_learnable_target(scratch / "target")
    for path in sorted(folder.iterdir()):
        store.upload(f"target/{path.name}", path)
    lines = (json.dumps({"prompt": f"Tell me of number {number}."}) for number in range(PROMPTS))
    store.write("prompts.jsonl", "".join(line + "\n" for line in lines).encode())

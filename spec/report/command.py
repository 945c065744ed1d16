"""The command that serves a draft: the same on the model card, in the report, and after a fetch."""

import shlex

from spec.export.layout import default_context
from spec.storage.markers import Marker

NUM_STEPS = 3  # a chain of three: what the published figures of the field are measured with


def serving_command(marker: Marker, draft: str, *, target: str | None = None, num_steps: int = NUM_STEPS) -> str:
    """The shell command, a line for each option, that serves `target` with the draft at `draft`.

    `marker`: the draft's `draft.json`. `target`: by default the model that the draft was trained for. The three
    speculative numbers go together (SGLang takes all or none), and with a top-k of 1 there are `num_steps` + 1 tokens.
    """
    options = {
        "--model-path": target or target_of(marker),
        "--speculative-algorithm": "EAGLE3",  # `EAGLE` runs too, and accepts nothing
        "--speculative-draft-model-path": draft,
        "--speculative-num-steps": str(num_steps),
        "--speculative-eagle-topk": "1",
        "--speculative-num-draft-tokens": str(num_steps + 1),
    }
    longest = marker.facts["context_length"]
    if longest < default_context(marker.facts["target"]["max_position_embeddings"]):
        options["--context-length"] = str(longest)  # the draft knows no positions beyond
    lines = [f"{name} {shlex.quote(value)}" for name, value in options.items()]
    return " \\\n  ".join(["python -m sglang.launch_server", *lines])


def target_of(marker: Marker) -> str:
    """The model that a draft was trained for, as its run names it."""
    return marker.facts.get("run", {}).get("target", {}).get("model") or "TARGET"

"""The command that serves a draft: the same on the model card, in the report, and after a fetch."""

import shlex

from spec.methods import method_of
from spec.methods.files import default_context
from spec.storage.markers import Marker

NUM_STEPS = 3  # a chain of three: what the published figures of the field are measured with


def serving_command(marker: Marker, draft: str, *, target: str | None = None, num_steps: int = NUM_STEPS) -> str:
    """The shell command, a line for each option, that serves `target` with the draft at `draft`.

    `marker`: the draft's `draft.json`. `target`: by default the model that the draft was trained for. `num_steps`
    drafts a round, or as many as a block has, unless a sweep found a better number; as many requests at once as the
    sweep's servers took.
    """
    config = marker.facts["config"]
    method = method_of(config)
    most = method.most_drafts(config) or num_steps
    serving = marker.facts.get("serving", {})
    flags = method.flags(serving.get("drafts") or min(num_steps, most))
    options = {
        "--model-path": target or target_of(marker),
        "--speculative-algorithm": flags.pop("--speculative-algorithm"),
        "--speculative-draft-model-path": draft,
        **flags,
    }
    if room := serving.get("max_running_requests"):  # with a draft SGLang runs 48 at most where nothing is said
        options["--max-running-requests"] = str(room)
    options |= context_flags(marker)
    lines = [f"{name} {shlex.quote(value)}" if value else name for name, value in options.items()]
    return " \\\n  ".join(["python -m sglang.launch_server", *lines])


def context_flags(marker: Marker) -> dict[str, str]:
    """What keeps a server to the positions that the draft knows, where the target knows more."""
    longest = marker.facts["context_length"]
    if longest < default_context(marker.facts["target"]["max_position_embeddings"]):
        return {"--context-length": str(longest)}
    return {}


def target_of(marker: Marker) -> str:
    """The model that a draft was trained for, as its run names it."""
    return marker.facts.get("run", {}).get("target", {}).get("model") or "TARGET"

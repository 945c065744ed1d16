"""What a draft's folder holds, whatever its method. Imports no torch: the machine that publishes a draft has none."""

from typing import Any

from spec.errors import BadInput
from spec.storage import Store
from spec.storage.markers import Marker, read_marker

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MARKER = "draft.json"

# A draft serves contexts up to its max_position_embeddings. Without a wish for more, no further than this: the rotary
# table that a server builds grows with it, and Llama 4 Scout's config says 10M.
LONGEST_CONTEXT = 131072


def exported(draft: Store) -> Marker:
    """The marker of the draft that `draft` holds, whose files it vouches for; `BadInput` if there is none."""
    marker = read_marker(draft, MARKER)
    if marker is None:
        raise BadInput(f"{draft.url}: no draft here ({MARKER} is missing); run tools/extract_draft_model.py")
    return marker


def default_context(target_positions: int) -> int:
    """The context length a draft is made for unless told otherwise, from the target's max_position_embeddings."""
    return min(target_positions, LONGEST_CONTEXT)


def rope_scaling(rope_parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The older spelling of transformers 5's `rope_parameters`, which goes beside a `rope_theta` of its own."""
    scaling = {name: value for name, value in rope_parameters.items() if name != "rope_theta"}
    return None if scaling == {"rope_type": "default"} else scaling

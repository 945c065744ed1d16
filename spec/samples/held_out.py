"""Which conversations training never sees: decided by the first user message, so that equal prompts stay together."""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from spec.storage.markers import Json, Marker

_ALL = 2**64

# Of samples' and drafts' facts: a prompt with a hash below this was never trained on, nor by the draft that it began
# from. None, or missing, where that is not known.
HELD_OUT_BELOW = "held_out_below"


def prompt_hash(messages: list[dict[str, Any]]) -> int:
    """64 bits of the SHA-256 of the first user message."""
    content = next((message["content"] for message in messages if message["role"] == "user"), "")
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def first_prompt(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages up to the first user's, that one included."""
    end = next((place + 1 for place, message in enumerate(messages) if message["role"] == "user"), 0)
    return messages[:end]


def held_out_below(wanted: float, conversations: Callable[[], Iterable[dict[str, Any]]]) -> int:
    """The hash below which a prompt is held out.

    `wanted` below 1 is a share of the prompts. From 1 it is a number of conversations: then all of them are read once
    more for their hashes (8 bytes of memory each), and equal prompts may make it a few more.
    """
    if wanted < 1:
        return int(wanted * _ALL)
    hashes = np.fromiter((prompt_hash(row["messages"]) for row in conversations()), np.uint64)
    last = min(int(wanted), len(hashes)) - 1
    return int(np.partition(hashes, last)[last]) + 1 if len(hashes) else 0


def never_trained_on(samples: Marker | None, start: Json | None) -> int | None:
    """`HELD_OUT_BELOW` of a draft that was trained on `samples`, from the draft that `start` tells of, if any."""
    if samples is None:
        return None
    share = samples.settings.get("held_out", 1)  # a share says it by itself, which samples of before did
    below = samples.facts.get(HELD_OUT_BELOW, int(share * _ALL) if share < 1 else None)
    if start is None or below is None:
        return below
    its = start.get(HELD_OUT_BELOW)
    return None if its is None else min(below, its)

"""Which conversations training never sees: decided by the first user message, so that equal prompts stay together."""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_ALL = 2**64


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

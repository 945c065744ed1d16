"""Token ids as text, three characters a token, so that a row with its tokens stays one line of JSON.

An id is written in base 91, most significant digit first, with the printable ASCII characters that JSON does not
escape: token i is the characters 3i to 3i + 2. As JSON's numbers an id takes 5 to 7 bytes, as Base64 of int32 it takes
5.3; a binary file beside the lines would have to be mended together with them after each kill. Compressed ids take 2 to
2.5 bytes and several times as long to read, which is what preparing is bound by.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from spec.errors import BadInput

WIDTH = 3  # characters of a token
LIMIT = 91**WIDTH  # ids are below; the largest vocabularies have 300,000 tokens
PROBE = (
    "The 3 cafés of 東京 open at 07:30; naïve Ωs cost €1,234.50 — «да»? 🙂\n\n\tdef f(x): return x['a'] != None  # नमस्ते"
)

_DIGITS = np.array([code for code in range(ord("#"), ord("~") + 1) if code != ord("\\")], np.uint8)  # [91]
_NONE = -(10**7)  # what no sum of two digits makes positive again
_VALUES = np.full(256, _NONE, np.int32)  # [256]: what a character is worth
_VALUES[_DIGITS] = np.arange(91)
_HIGH, _MIDDLE = (np.where(_VALUES < 0, _NONE, _VALUES * 91**place).astype(np.int32) for place in (2, 1))


def as_ids(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """`[T]` int32. Raises `ValueError` for what is no list of token ids."""
    plain = np.asarray(ids if len(ids) else np.empty(0, np.int32))
    if plain.ndim != 1 or plain.dtype.kind not in "iu":
        raise ValueError(f"no token ids: {str(ids)[:60]}")
    if len(wrong := plain[(plain < 0) | (plain >= LIMIT)]):
        raise ValueError(f"no token ids: {wrong[0]} among them")
    return plain.astype(np.int32)


def encode(ids: Sequence[int] | np.ndarray) -> str:
    """`[T]` ids as `3 T` characters. Raises `ValueError` as `as_ids` does."""
    plain = as_ids(ids)
    places = np.stack([plain // 91**2, plain // 91 % 91, plain % 91], axis=1)  # [T, 3]
    return _DIGITS[places].tobytes().decode("ascii")


def decode(text: str) -> np.ndarray:
    """`[T]` int32 ids of `3 T` characters. Raises `BadInput` for other text."""
    try:
        characters = np.frombuffer(text.encode("ascii"), np.uint8).reshape(-1, WIDTH)  # [T, 3]
    except ValueError as error:  # also of characters beyond ASCII
        raise BadInput("token ids are damaged; filter the shard again") from error
    ids = _HIGH[characters[:, 0]] + _MIDDLE[characters[:, 1]] + _VALUES[characters[:, 2]]
    if len(ids) and ids.min() < 0:
        raise BadInput("token ids are damaged; filter the shard again")
    return ids


def shared_prefix(before: np.ndarray, ids: np.ndarray) -> int:
    """How many tokens two sequences have in common from their first on."""
    length = min(len(before), len(ids))
    different = np.flatnonzero(before[:length] != ids[:length])
    return int(different[0]) if len(different) else length


def fingerprint(probe_ids: Sequence[int]) -> str:
    """What a tokenizer is known by (16 hex digits): hash of the ids that it makes of `PROBE`, no special tokens added.

    Files cannot be compared: the server has its own, elsewhere.
    """
    return hashlib.sha256(re.sub(r"\s", "", str(list(probe_ids))).encode()).hexdigest()[:16]

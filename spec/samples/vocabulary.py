"""The draft's vocabulary: the target's tokens that its own answers use most, and the map between the two.

`d2t[i] = target id of draft token i, minus i` (offsets, as SGLang's loader adds them); `t2d[v]` says whether the draft
has target token v.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save

from spec.errors import BadInput

_TOKENS_AT_ONCE = 1 << 20  # they stay in the processor's cache


class DraftVocabulary(NamedTuple):
    d2t: np.ndarray  # [draft_vocab_size] int64
    t2d: np.ndarray  # [vocab_size] bool

    def save(self, path: Path) -> None:
        path.write_bytes(save({"d2t": self.d2t, "t2d": self.t2d}))  # save_file hides it from other users: mode 0600

    @classmethod
    def load(cls, path: Path) -> "DraftVocabulary":
        return cls(**load_file(path))


def check_size(size: int, vocab_size: int) -> None:
    """Raises `BadInput` where a draft vocabulary would be larger than the target's."""
    if size > vocab_size:
        raise BadInput(
            f"a draft vocabulary of {size} is larger than the target's {vocab_size}; lower --draft-vocab-size"
        )


def count_tokens(input_ids: np.ndarray, loss_mask: np.ndarray, vocab_size: int) -> np.ndarray:
    """`[vocab_size]` int64: how often each token bears loss. The arrays `[total]` may be memory-mapped.

    Raises `BadInput` for a token outside of the vocabulary, whether it bears loss or not.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(input_ids), _TOKENS_AT_ONCE):
        ids, bears = (array[start : start + _TOKENS_AT_ONCE] for array in (input_ids, loss_mask))
        if ids.max() >= vocab_size:
            raise BadInput(
                f"token {ids.max()} is outside of the target's vocabulary of {vocab_size}: another tokenizer"
            )
        counts += np.bincount(ids[bears.view(bool)], minlength=vocab_size)
    return counts


def tokens_present(input_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """`[vocab_size]` bool: which tokens occur at all, in prompts too, in `[total]` ids that may be memory-mapped."""
    present = np.zeros(vocab_size, dtype=bool)
    for start in range(0, len(input_ids), _TOKENS_AT_ONCE):
        present[input_ids[start : start + _TOKENS_AT_ONCE]] = True
    return present


def choose_vocabulary(counts: np.ndarray, size: int, always: Collection[int] = ()) -> DraftVocabulary:
    """The `size` most counted target tokens, `always` among them; the lower id where counts are equal.

    `counts` is `[vocab_size]`. Where too few were counted, the lowest of the others fill up. Raises `BadInput` where
    `size` is larger than the target's vocabulary, or too small for `always`.
    """
    check_size(size, len(counts))
    if size < len(always):
        raise BadInput(f"a draft vocabulary of {size} has no room for the template's {len(always)} special tokens")
    rank = counts.copy()
    rank[list(always)] = np.iinfo(np.int64).max
    chosen = np.sort(np.argsort(-rank, kind="stable")[:size])  # stable: equal counts stay in the order of their ids
    t2d = np.zeros(len(counts), dtype=bool)
    t2d[chosen] = True
    return DraftVocabulary(chosen - np.arange(size), t2d)

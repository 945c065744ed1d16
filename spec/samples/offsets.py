"""Tokenises texts, and knows which token begins where.

In byte-level BPE (Llama 3 and 4, Qwen, SmolLM) the bytes of the tokens are the bytes of the text, so where tokens begin
is the running sum of their lengths, and the tokenizer is spared keeping track of offsets, which is a fifth of its time.
A text that this does not explain to its last byte is tokenised again with the tokenizer's own offsets.
"""

from typing import Any, Protocol

import numpy as np
from tokenizers import Encoding


class Encoded(Protocol):
    ids: np.ndarray  # [T] int32

    def token_at(self, character: int) -> int | None:
        """The token that begins at a character of the text (T at its end), None where a token stands across it."""


class Encoder:
    """A tokenizer as the server uses it: special tokens are those in the text, none is added."""

    def __init__(self, tokenizer: Any):
        self._backend = tokenizer.backend_tokenizer
        self._backend.post_processor = None  # it would trim blanks off the offsets
        self._backend.no_truncation()
        self._backend.no_padding()
        self._normalizer = self._backend.normalizer
        self._widths = _widths(self._backend)

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: list[str]) -> list[Encoded]:
        """In one pass over all texts, on one core with TOKENIZERS_PARALLELISM=false."""
        fast = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [self._placed(text, encoding) for text, encoding in zip(texts, fast, strict=True)]

    def _placed(self, text: str, encoding: Encoding) -> Encoded:
        ids = np.array(encoding.ids, dtype=np.int32)
        starts = np.zeros(len(ids) + 1, dtype=np.int64)
        self._widths[ids].cumsum(out=starts[1:])
        changed = self._normalizer is not None and self._normalizer.normalize_str(text) != text
        if changed or starts[-1] != _bytes_of(text):
            return _Tracked(text, self._backend.encode(text, add_special_tokens=False))
        return _Summed(text, ids, starts)


class _Summed:
    """Tokens placed by their lengths in bytes."""

    def __init__(self, text: str, ids: np.ndarray, starts: np.ndarray):
        self.ids = ids
        self._text = text
        self._starts = starts  # [T + 1] int64, ascending: the byte where each token begins, and the end

    def token_at(self, character: int) -> int | None:
        byte = character if self._text.isascii() else _bytes_of(self._text[:character])
        token = int(self._starts.searchsorted(byte))
        return token if self._starts[token] == byte else None


class _Tracked:
    """Tokens placed by the tokenizer itself."""

    def __init__(self, text: str, encoding: Encoding):
        self.ids = np.array(encoding.ids, dtype=np.int32)
        self._length = len(text)
        self._encoding = encoding

    def token_at(self, character: int) -> int | None:
        if character == self._length:
            return len(self.ids)
        token = self._encoding.char_to_token(character)
        span = None if token is None else self._encoding.token_to_chars(token)
        return token if span is not None and span[0] == character else None


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())  # a string knows that it is ASCII


def _widths(backend: Any) -> np.ndarray:
    """`[largest id + 1]` int64: bytes of each token; a byte is one character in the vocabulary of byte-level BPE."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    added = {token: its.content.encode() for token, its in backend.get_added_tokens_decoder().items()}
    widths = np.zeros(max((*vocabulary.values(), *added), default=0) + 1, dtype=np.int64)
    widths[list(vocabulary.values())] = [len(token) for token in vocabulary]
    widths[list(added)] = [len(content) for content in added.values()]
    return widths

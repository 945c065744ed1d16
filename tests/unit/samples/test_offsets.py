import random

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from spec.samples.offsets import Encoder, _Summed, _Tracked
from tests import chat_tokenizers

PIECES = [
    "word",
    " is",
    "  two",
    "\n\n",
    "\n",
    " 語",
    "🦙🙂",
    "123",
    "é",
    "<b>",
    "...",
    "'s",
    "\t",
    "<|eot_id|>",
    "<think>",
]


@pytest.mark.parametrize("family", ["llama3", "llama4", "qwen3"])
def test_every_characters_token_is_the_one_that_the_tokenizer_tracks(family):
    encoder = Encoder(getattr(chat_tokenizers, family)())
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 30))) for _ in range(50)]
    for text, encoded in zip(texts, encoder.encode_all(texts), strict=True):
        assert isinstance(encoded, _Summed)
        tracked = _Tracked(text, encoder._backend.encode(text, add_special_tokens=False))
        assert encoded.ids.tolist() == tracked.ids.tolist()
        assert [encoded.token_at(at) for at in range(len(text) + 1)] == [
            tracked.token_at(at) for at in range(len(text) + 1)
        ]


def test_by_hand():
    encoder = Encoder(chat_tokenizers.llama3())
    (encoded,) = encoder.encode_all(["Hi there🦙!<|eot_id|>"])
    tokens = [chat_tokenizers.llama3().decode([token]) for token in encoded.ids]
    assert tokens == ["Hi", " there", "\ufffd", "\ufffd", "\ufffd", "!", "<|eot_id|>"]
    assert [encoded.token_at(at) for at in (0, 1, 2, 3, 8, 9, 10, 11, 20)] == [0, None, 1, None, 2, 5, 6, None, 7]


def test_text_that_the_tokenizer_normalises_is_tracked():
    encoder = Encoder(chat_tokenizers.qwen3())
    text = "e\u0301t <|im_end|>"
    (encoded,) = encoder.encode_all([text])
    assert isinstance(encoded, _Tracked)
    assert encoded.token_at(text.index("<")) == len(encoded.ids) - 1


def test_text_that_shrinks_and_grows_by_the_same_is_tracked():
    """Two letters in parts lose a byte each, and one that has no whole form gains three: the sums alone agree."""
    encoder = Encoder(chat_tokenizers.qwen3())
    text = "e\u0301" * 3 + "<|im_end|>" + "\u0958"
    changed = encoder._backend.normalizer.normalize_str(text)
    assert changed != text and len(changed.encode()) == len(text.encode())
    (encoded,) = encoder.encode_all([text])
    at = text.index("<")
    assert encoded.ids[encoded.token_at(at)] == chat_tokenizers.qwen3().convert_tokens_to_ids("<|im_end|>")


def test_tokens_that_take_blanks_along_are_tracked():
    backend = Tokenizer.from_str(chat_tokenizers.qwen3().backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])

    class Wrapped:
        backend_tokenizer = backend

    (encoded,) = Encoder(Wrapped()).encode_all(["Hi  <mask>."])
    assert isinstance(encoded, _Tracked)
    assert encoded.token_at(len("Hi  <mask>")) == len(encoded.ids) - 1


def test_an_empty_text():
    (encoded,) = Encoder(chat_tokenizers.qwen3()).encode_all([""])
    assert (encoded.ids.dtype, len(encoded.ids), encoded.token_at(0)) == (np.int32, 0, 0)

import json

import numpy as np
import pytest

from spec.conversations import token_ids
from spec.errors import BadInput
from tests import chat_tokenizers
from tests.tiny_models import tiny_tokenizer


def test_ids_come_back_and_take_three_characters_that_json_leaves_alone():
    ids = [0, 1, 90, 91, 8280, 8281, 128_009, 201_134, token_ids.LIMIT - 1, *range(0, token_ids.LIMIT, 977)]
    text = token_ids.encode(ids)
    assert token_ids.decode(text).tolist() == ids
    assert len(json.dumps(text, ensure_ascii=False)) == 3 * len(ids) + 2
    assert token_ids.decode(text[3:9]).tolist() == ids[1:3]  # a token stands in its place


def test_no_ids():
    assert token_ids.encode([]) == "" and token_ids.decode("").tolist() == []


@pytest.mark.parametrize("ids", [[-1], [token_ids.LIMIT], [1.5], ["1"], [[1]], [None], [True], "12"], ids=str)
def test_what_is_no_list_of_ids(ids):
    with pytest.raises(ValueError, match="no token ids"):
        token_ids.encode(ids)


@pytest.mark.parametrize("text", ["#", "####", "##\\", "## ", '##"', "##é", "##\x7f", "!##", "~~\n"])
def test_damaged_text(text):
    with pytest.raises(BadInput, match="damaged"):
        token_ids.decode(text)


@pytest.mark.parametrize(
    ("before", "ids", "shared"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1), ([1, 2, 3], [1, 2], 2), ([1], [2], 0)],
)
def test_how_much_is_shared(before, ids, shared):
    assert token_ids.shared_prefix(np.array(before, int), np.array(ids)) == shared


def test_tokenizers_are_told_apart():
    tokenizers = [tiny_tokenizer(), chat_tokenizers.llama3(), chat_tokenizers.llama4(), chat_tokenizers.qwen3()]
    known = {token_ids.fingerprint(its.encode(token_ids.PROBE, add_special_tokens=False)) for its in tokenizers}
    assert len(known) == 4

import os
import time

import numpy as np
import pytest

from spec.errors import BadInput
from spec.samples.convert import TRAIN, Converter, Limits
from spec.samples.vocabulary import DraftVocabulary, choose_vocabulary, count_tokens
from tests import chat_tokenizers
from tests.answered import answered, chat


def counted_plainly(input_ids, loss_mask, vocab_size):
    counts = [0] * vocab_size
    for token, bears in zip(input_ids, loss_mask, strict=True):
        counts[token] += int(bears)
    return counts


def chosen_plainly(counts, size, always):
    """Target ids of the draft's tokens, ascending."""
    best_first = sorted(range(len(counts)), key=lambda token: (token not in always, -counts[token], token))
    return sorted(best_first[:size])


@pytest.mark.parametrize("seed", range(5))
def test_equals_plain_counting_and_sorting(seed):
    rng = np.random.default_rng(seed)
    ids = rng.zipf(1.3, 3000).clip(1, 200).astype(np.int32) - 1  # many equal counts, many never seen
    mask = rng.integers(0, 2, 3000).astype(np.uint8)
    counts = count_tokens(ids, mask, 200)
    assert counts.tolist() == counted_plainly(ids, mask, 200)
    always = {150, 199}
    vocabulary = choose_vocabulary(counts, 60, always)
    assert (vocabulary.d2t + np.arange(60)).tolist() == chosen_plainly(counts.tolist(), 60, always)
    assert np.flatnonzero(vocabulary.t2d).tolist() == chosen_plainly(counts.tolist(), 60, always)
    assert vocabulary.d2t.dtype == np.int64 and vocabulary.t2d.dtype == bool and len(vocabulary.t2d) == 200


def test_offsets_ties_and_filling_up_by_hand():
    counts = np.array([0, 0, 7, 3, 0, 3, 3, 9])
    vocabulary = choose_vocabulary(counts, 4, always=[4])  # 4 always, 7 and 2 counted most, 3 first of the equal ones
    assert vocabulary.d2t.tolist() == [2 - 0, 3 - 1, 4 - 2, 7 - 3]
    assert choose_vocabulary(counts, 7).d2t.tolist() == [0, 0, 0, 0, 1, 1, 1]  # 0 and 1 fill up: 0 1 2 3 5 6 7


def test_the_whole_vocabulary_is_the_identity():
    vocabulary = choose_vocabulary(np.array([0, 5, 1, 0]), 4)
    assert vocabulary.d2t.tolist() == [0, 0, 0, 0]
    assert vocabulary.t2d.all()


def test_other_users_of_a_shared_run_can_read_it(tmp_path):
    vocabulary = choose_vocabulary(np.array([0, 5, 1, 0]), 2)
    before = os.umask(0o022)
    vocabulary.save(tmp_path / "map.safetensors")
    os.umask(before)
    assert (tmp_path / "map.safetensors").stat().st_mode & 0o777 == 0o644
    assert all(map(np.array_equal, DraftVocabulary.load(tmp_path / "map.safetensors"), vocabulary))


def test_a_draft_vocabulary_larger_than_the_targets():
    with pytest.raises(BadInput, match="a draft vocabulary of 5 is larger than the target's 4"):
        choose_vocabulary(np.zeros(4, np.int64), 5)


def test_a_draft_vocabulary_without_room_for_the_special_tokens():
    with pytest.raises(BadInput, match="no room for the template's 3 special tokens"):
        choose_vocabulary(np.zeros(4, np.int64), 2, [0, 1, 2])


def test_a_token_outside_of_the_targets_vocabulary_though_it_bears_no_loss():
    with pytest.raises(BadInput, match="token 9 is outside"):
        count_tokens(np.array([1, 9], np.int32), np.array([1, 0], np.uint8), 8)


def test_saved_and_loaded(tmp_path):
    vocabulary = choose_vocabulary(np.array([0, 5, 1, 0]), 2)
    vocabulary.save(tmp_path / "vocab_map.safetensors")
    loaded = DraftVocabulary.load(tmp_path / "vocab_map.safetensors")
    assert loaded.d2t.tolist() == [1, 1] and loaded.t2d.tolist() == [False, True, True, False]


@pytest.mark.parametrize("family", ["llama3", "llama4"])
def test_the_real_vocabularies_of_128k_and_200k_tokens(family):
    tokenizer = getattr(chat_tokenizers, family)()
    closing = tokenizer.eos_token
    conversation = answered(
        tokenizer, chat("Where is Paris?", "Paris is in France. Paris!"), [f"Paris is in France. Paris!{closing}"]
    )
    converted = Converter(tokenizer, [{}], Limits(2048, False, 0))([conversation])
    ids, mask, *_ = converted.rows[TRAIN]
    vocabulary = choose_vocabulary(count_tokens(ids, mask, len(tokenizer)), 64, converted.special)
    in_draft = {token + offset for token, offset in enumerate(vocabulary.d2t.tolist())}
    written = set(tokenizer("Paris is in France. Paris!", add_special_tokens=False).input_ids)
    assert written | set(tokenizer.convert_tokens_to_ids([closing, tokenizer.bos_token])) <= in_draft
    assert {tokenizer.convert_ids_to_tokens(token) for token in converted.special} == {
        "llama3": {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
        "llama4": {"<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>"},
    }[family]
    assert len(vocabulary.t2d) == len(tokenizer) and vocabulary.t2d.sum() == 64


def test_a_tenth_of_the_largest_corpus_takes_a_tenth_of_a_second():
    """10 million tokens of a vocabulary of 152,000: processor time, so that a busy machine does not count."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 152_000, 10_000_000, dtype=np.int32)
    mask = np.repeat(rng.integers(0, 2, 100_000), 100).astype(np.uint8)
    started = time.process_time()
    choose_vocabulary(count_tokens(ids, mask, 152_000), 32_000)
    assert time.process_time() - started < 0.3

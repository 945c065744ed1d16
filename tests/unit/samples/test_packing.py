import time

import numpy as np
import pytest

from spec.errors import BadInput
from spec.samples.packing import epoch_order, pack


def conversation_lengths(rows, *, spread=0.6, longest=2048, seed=0):
    """Log-normal with mean 1000, the longer ones left out, as preparing leaves them out."""
    lengths = np.random.default_rng(seed).lognormal(np.log(1000) - spread**2 / 2, spread, rows).astype(np.int64) + 1
    return lengths[lengths <= longest]


@pytest.mark.parametrize("spread", [0.4, 0.6, 0.8])
def test_under_three_percent_of_the_slots_are_padding(spread):
    lengths = conversation_lengths(20_000, spread=spread)
    bins = pack(lengths, 2048)
    assert 1 - lengths.sum() / (len(bins) * 2048) < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_one_bin_and_no_bin_overflows(seed):
    lengths = np.random.default_rng(seed).integers(1, 65, 500)
    bins = pack(lengths, 64, seed=seed)
    assert sorted(row for rows in bins for row in rows) == list(range(500))
    assert max(lengths[rows].sum() for rows in bins) <= 64


def test_equals_plain_best_fit():
    """The same number of bins, filled as well, as by looking through all open bins for each row."""
    lengths = np.random.default_rng(1).integers(1, 100, 400)
    plain: list[int] = []  # room left
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [room for room in plain if room >= length]
        if fitting:
            plain[plain.index(min(fitting))] -= length
        else:
            plain.append(100 - length)
    bins = pack(lengths, 100)
    assert sorted(100 - lengths[rows].sum() for rows in bins) == sorted(plain)


def test_the_seed_decides():
    lengths = np.random.default_rng(0).integers(1, 65, 500)
    assert pack(lengths, 64, seed=3) == pack(lengths, 64, seed=3)
    assert pack(lengths, 64, seed=3) != pack(lengths, 64, seed=4)


def test_no_rows_and_rows_of_full_length():
    assert pack(np.array([], np.int64), 8) == []
    assert sorted(pack(np.array([8, 8]), 8)) == [[0], [1]]


def test_a_row_that_fits_no_bin():
    with pytest.raises(BadInput, match="a row of 9 tokens does not fit 8"):
        pack(np.array([3, 9]), 8)


def test_two_hundred_thousand_rows_take_about_a_second():
    lengths = conversation_lengths(200_000)
    started = time.process_time()
    pack(lengths, 2048)
    assert time.process_time() - started < 2


def test_each_epoch_visits_all_bins_in_its_own_order():
    first, second = (epoch_order(100, seed=1, epoch=epoch).tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first == epoch_order(100, seed=1, epoch=0).tolist() != epoch_order(100, seed=2, epoch=0).tolist()

"""What a round accepts against what it costs: no setting that might win is left out, and the best one is told."""

import pytest

from spec.tuning import arithmetic

KEPT = [0.5, 0.2, 0.1]


def setting(drafts, load, faster, *, costs=1.0, forward=10.0):
    return {
        "drafts": drafts,
        "concurrency": load,
        "speed_up": [faster, faster, faster],
        "costs": [costs, costs, costs],
        "plain": {"round_ms": [forward, forward, forward]},
    }


def test_positions_predict_fewer_drafts_and_bound_more():
    assert arithmetic.accepts_at_most(1, KEPT) == pytest.approx(1.5)
    assert arithmetic.accepts_at_most(3, KEPT) == pytest.approx(1.8)
    assert arithmetic.accepts_at_most(5, KEPT) == pytest.approx(2.0)  # the 4th and 5th no more often than the 3rd
    assert arithmetic.accepts_at_most(5, None) == 6  # a block of another size might keep all


def test_a_round_costs_no_less_than_one_of_half_as_many_drafts_at_the_same_load():
    measured = [setting(1, 4, 0.9, costs=1.6), setting(1, 16, 0.7, costs=3.0)]
    assert arithmetic.wins_at_most(3, 4, KEPT, measured) == pytest.approx(1.8 / 1.6)
    assert arithmetic.wins_at_most(3, 16, KEPT, measured) == pytest.approx(1.8 / 3)
    assert arithmetic.wins_at_most(3, 1, KEPT, measured) == pytest.approx(1.8)  # nothing known: no less than a forward
    assert arithmetic.wins_at_most(1, 4, KEPT, [setting(3, 4, 1.0, costs=2.0)]) == pytest.approx(1.5)
    assert arithmetic.wins_at_most(3, 4, KEPT, [setting(2, 4, 0.9, costs=1.9)]) == pytest.approx(1.8)
    noisy = setting(1, 4, 0.9) | {"costs": [2.5, 1.2, 2.6]}
    assert arithmetic.wins_at_most(3, 4, KEPT, [noisy]) == pytest.approx(1.8 / 1.2)


def test_what_loses_to_no_draft_or_to_the_best_is_left_out_and_nothing_within_noise():
    assert arithmetic.cannot_win(0.9, 1, [])
    assert not arithmetic.cannot_win(0.96, 1, [])
    best = [setting(1, 1, 1.4), setting(1, 4, 1.1)]
    assert arithmetic.cannot_win(1.3, 1, best) and not arithmetic.cannot_win(1.35, 1, best)
    assert not arithmetic.cannot_win(1.3, 4, best)  # another load's best says nothing


def test_the_verification_is_a_forward_of_as_many_rows():
    forwards = arithmetic.forward_ms([setting(1, 1, 1, forward=10), setting(1, 4, 1, forward=16),
                                      setting(3, 1, 1, forward=9)])  # fmt: skip
    assert forwards == {1: 9, 4: 16}
    assert arithmetic.verify_ms(3, 1, forwards) == 16
    assert arithmetic.verify_ms(1, 1, forwards) == pytest.approx(9 + (16 - 9) / 3)
    assert arithmetic.verify_ms(3, 4, forwards) == pytest.approx(16 + 12 * (16 - 9) / 3)  # 16 rows: on the same line
    assert arithmetic.verify_ms(3, 4, {4: 16.0}) is None
    assert arithmetic.verify_ms(3, 1, {4: 16.0}) == 16


def test_the_best_over_all_loads_is_recommended_and_its_losses_are_told():
    measured = [setting(1, 1, 1.2), setting(1, 8, 1.1), setting(3, 1, 1.6), setting(3, 8, 0.98)]
    found = arithmetic.recommend(measured, [], [1, 8])
    assert found == {"drafts": 3, "speed_up": {"1": 1.6, "8": 0.98}}
    assert arithmetic.words(found) == (
        "deploy it with 3 drafts a round: 1.60 times the tokens/s at one request at a time, 0.98 times the tokens/s at "
        "8 requests at once; not for speed at 8 requests at once"
    )


def test_a_setting_left_out_counts_with_its_bound_and_is_not_told_as_measured():
    measured = [setting(1, 1, 1.2), setting(1, 8, 1.2), setting(3, 1, 1.3)]
    skipped = [{"drafts": 3, "concurrency": 8, "at_most": 0.6}]
    assert arithmetic.recommend(measured, skipped, [1, 8])["drafts"] == 1
    skipped[0]["at_most"] = 1.19
    assert arithmetic.recommend(measured, skipped, [1, 8]) == {"drafts": 3, "speed_up": {"1": 1.3}}


def test_where_nothing_gains_no_flags_are_recommended():
    found = arithmetic.recommend([setting(1, 1, 0.7), setting(3, 1, 1.02)], [], [1])
    assert found == {"drafts": None, "speed_up": {"1": 1.02}}
    assert arithmetic.words(found) == ("do not deploy it for speed: 1.02 times the tokens/s at one request at a time")

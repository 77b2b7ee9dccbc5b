"""What two candidates' scores on the same examples support, and what they do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from workbench.tasks.paired import MARGIN, accuracy, corrected, paired


def scores(wins: int, losses: int, both: int = 0, neither: int = 0) -> tuple[list[float], list[float]]:
    """Scores of a candidate and a reference with so many examples of each kind."""
    kinds = [(1.0, 0.0)] * wins + [(0.0, 1.0)] * losses + [(1.0, 1.0)] * both + [(0.0, 0.0)] * neither
    candidate, reference = zip(*kinds, strict=True)
    return list(candidate), list(reference)


def test_mcnemars_p_is_the_binomial_tail_of_wins_and_losses():
    found = paired(*scores(3, 12, 60, 25))
    assert (found.wins, found.losses, found.ties, found.examples) == (3, 12, 85, 100)
    assert found.p == pytest.approx(2 * binom.cdf(3, 15, 0.5))
    assert found.difference.value == pytest.approx(-0.09)


def test_the_interval_is_the_bootstraps_of_examples_and_the_same_for_the_same_seed():
    found = paired(*scores(3, 12, 60, 25))
    gains = np.subtract(*map(np.array, scores(3, 12, 60, 25)))
    drawn = np.random.default_rng(7).choice(gains, (20_000, 100)).mean(1)
    low, high = found.difference.low, found.difference.high
    assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.011)
    assert found == paired(*scores(3, 12, 60, 25))


def test_a_winner_is_called_only_where_the_data_support_it():
    assert corrected([paired(*scores(5, 1, 40, 4))])[0].verdict == "no difference shown"
    assert corrected([paired(*scores(0, 12, 40, 4))])[0].verdict == "worse"
    assert corrected([paired(*scores(12, 0, 40, 4))])[0].verdict == "better"


def test_of_many_comparisons_one_that_looks_good_by_chance_wins_nothing():
    lucky, even = paired(*scores(8, 1, 40, 10)), paired(*scores(4, 4, 40, 10))
    assert lucky.p < 0.05
    assert corrected([lucky])[0].settled
    among = corrected([lucky, *[even] * 5])
    assert among[0].holm == pytest.approx(6 * lucky.p)
    assert among[0].verdict == "no difference shown"


def test_nothing_seen_is_not_taken_for_certainty():
    found = paired(*scores(0, 0, 20, 5))
    assert found.p == 1
    assert found.difference.high == pytest.approx(1 - 0.025 ** (1 / 25))
    assert found.verdict == "no difference shown"
    many = corrected([paired(*scores(0, 0, 300, 100))])[0]
    assert many.verdict == "as good, within 2 points"
    assert accuracy([1.0] * 10).low == pytest.approx(0.025 ** (1 / 10))


def test_with_one_example_or_none_nothing_is_said():
    for one in (paired([1.0], [0.0]), paired([], []), paired([math.nan, 1.0], [1.0, 0.0])):
        assert one.p == 1
        assert one.verdict == "too few examples to say anything"
        assert math.isnan(one.difference.low)


def test_examples_without_a_score_are_left_out_of_pairs():
    found = paired([1.0, math.nan, 0.0, 1.0], [0.0, 1.0, math.nan, 1.0])
    assert (found.examples, found.wins, found.losses, found.ties) == (2, 1, 0, 1)


def test_as_many_more_examples_as_it_says_settle_a_difference_of_that_size():
    found = paired(*scores(6, 12, 60, 22))
    total = found.examples + found.more
    random = np.random.default_rng(1)
    shares = np.array([0.06, 0.12, 0.60, 0.22])
    settled = [corrected([paired(*scores(*random.multinomial(total, shares)))])[0].settled for _ in range(150)]
    assert 0.7 < np.mean(settled) < 0.92, "the power is 80 %"


def test_where_little_differs_it_asks_for_enough_to_show_that_it_is_within_the_margin():
    found = paired(*scores(5, 5, 60, 30))
    total = found.examples + found.more
    wide = paired(*scores(total // 20, total // 20, total - 2 * (total // 20)))
    assert wide.difference.high == pytest.approx(MARGIN, rel=0.1)


def test_scores_between_0_and_1_are_compared_by_their_sign():
    found = paired([0.5, 0.75, 1.0, 0.25], [0.5, 0.5, 0.5, 0.5])
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.difference.value == pytest.approx(0.125)

"""The knapsack against trying everything."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from workbench.allocation.solver import GAP, Knapsack, knapsack


def drawn(seed: int, groups: int = 6) -> list[list[tuple[int, float]]]:
    """Options without any order, some dominated, some alike."""
    random = np.random.default_rng(seed)
    return [
        [(int(random.integers(1, 30)), float(random.integers(0, 40)) / 7) for _ in range(random.integers(1, 6))]
        for _ in range(groups)
    ]


def by_trying(options: list[list[tuple[int, float]]], budget: int) -> float:
    mixes = (tuple(zip(*mix, strict=True)) for mix in product(*options))
    return min((sum(costs) for nbytes, costs in mixes if sum(nbytes) <= budget), default=np.inf)


@pytest.mark.parametrize("seed", range(12))
def test_the_mix_within_a_budget_is_the_best_of_all(seed: int):
    options = drawn(seed)
    sack = knapsack(options)
    least, most = (sum(end(nbytes for nbytes, _ in group) for group in options) for end in (min, max))
    for budget in np.linspace(least, most + 5, 9).astype(int).tolist():
        mix = sack.best(budget)
        assert sack.nbytes[mix].sum() <= budget
        assert list(sack.group[mix]) == list(range(len(options)))
        best = by_trying(options, budget)
        assert best - 1e-9 <= sack.cost[mix].sum() <= best * (1 + GAP) + 1e-9


def test_a_budget_below_the_smallest_mix_is_refused():
    sack = knapsack([[(5, 1.0), (3, 2.0)], [(4, 0.0)]])
    assert sack.nbytes[sack.best(7)].sum() == 7
    with pytest.raises(ValueError, match="7 bytes"):
        sack.best(6)


@pytest.mark.parametrize("seed", range(4))
def test_no_mix_lies_below_the_path(seed: int):
    options = drawn(seed)
    sack = knapsack(options)
    steps = [sack.path.mix(number) for number in range(len(sack.path.price) + 1)]
    points = [(sack.nbytes[mix].sum(), sack.cost[mix].sum()) for mix in steps]
    assert all(a < b and c > d for (a, c), (b, d) in pairwise(points))
    assert list(sack.path.price) == sorted(sack.path.price, reverse=True)
    for nbytes, cost in points:
        assert cost == pytest.approx(by_trying(options, int(nbytes)))


def test_thousands_of_groups_come_within_the_tolerance_of_the_bound():
    random = np.random.default_rng(0)
    groups, bits = 3000, np.array([2.6, 3.4, 4.5, 5.5, 6.6, 8.5])
    params = random.choice([192, 576, 1536], groups) * 576
    level = np.exp(random.normal(0, 1.5, groups))
    nbytes = np.rint(params[:, None] * bits / 8).astype(int)
    sack = Knapsack(np.repeat(np.arange(groups), 6), nbytes.ravel(), (level[:, None] * 4**-bits).ravel())
    budget = int(params.sum() * 4.5 / 8)
    price = sack.path.price[len(sack.path.price) // 2]
    mix = sack.best(budget)
    assert sack.nbytes[mix].sum() <= budget
    # the Lagrangian bound at the price where the budget lies, looked for by trying
    bounds = [
        (sack.cost + tried * sack.nbytes).reshape(groups, 6).min(1).sum() - tried * budget
        for tried in price * np.exp(np.linspace(-3, 3, 300))
    ]
    assert sack.cost[mix].sum() <= max(bounds) * (1 + 10 * GAP)

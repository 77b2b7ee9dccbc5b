"""A multiple-choice knapsack: one option for each group, the least cost in all, within a budget of bytes.

The best options for a price per byte (a Lagrangian) lie on each group's lower convex hull. Going through the
hulls' edges from the best saving per byte to the worst gives every mix on the convex hull of the Pareto front,
and a lower bound for any budget (Sinha and Zoltners 1979, Operations Research 27, 503). Between two such
mixes an integer program decides. The bound shuts out nearly all options beforehand, by their reduced costs, so
that it is solved in a fraction of a second for tens of thousands of matrices too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

GAP = 1e-4  # relative distance from the least possible cost at which the search ends: predictions err by far more
NODES = 20  # of the search tree: more take seconds where there are hundreds of stacks of experts, and gain under 1e-4


@dataclass(frozen=True, eq=False)
class Knapsack:
    """What is to be chosen from, options of all groups one after another.

    Attributes:
        group: [options] int, the number of the group an option belongs to; ascending, each of 0, 1, ... there.
        nbytes: [options] int, bytes of an option.
        cost: [options] float, cost of an option, in nats per token.
    """

    group: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    cost: NDArray[np.float64]

    @cached_property
    def groups(self) -> int:
        return int(self.group[-1]) + 1 if len(self.group) else 0

    @cached_property
    def smallest(self) -> NDArray[np.int64]:
        """[groups] the option of fewest bytes of each group, of several the one of least cost."""
        order = np.lexsort((self.cost, self.nbytes, self.group))
        return order[np.searchsorted(self.group[order], np.arange(self.groups))]

    @cached_property
    def path(self) -> Path:
        """The mixes on the convex hull of the Pareto front, from the smallest to that of least cost."""
        edges = [edge for options in self._by_group() for edge in self._hull(options)]
        start = self.smallest
        if not edges:
            none = np.zeros(0)
            return Path(start, none.astype(int), none.astype(int), none)
        before, after = np.array(edges).T
        price = (self.cost[before] - self.cost[after]) / (self.nbytes[after] - self.nbytes[before])
        # Within a group prices fall along the hull; a stable sort keeps its edges in order where they are equal.
        order = np.argsort(-price, kind="stable")
        return Path(start, before[order], after[order], price[order])

    def only(self, groups: NDArray[np.bool_]) -> Knapsack:
        """The same for some of the groups, [groups] bool, numbered anew; its path is that of the whole."""
        kept, number = groups[self.group], np.cumsum(groups) - 1
        made = Knapsack(number[self.group[kept]], self.nbytes[kept], self.cost[kept])
        path, place = self.path, np.cumsum(kept) - 1
        edges = groups[self.group[path.after]]
        ends = (place[path.before[edges]], place[path.after[edges]])
        vars(made)["path"] = Path(place[path.start[groups]], *ends, path.price[edges])
        return made

    def _by_group(self) -> list[NDArray[np.int64]]:
        return np.split(np.arange(len(self.group)), np.searchsorted(self.group, np.arange(1, self.groups)))

    def _hull(self, options: NDArray[np.int64]) -> list[tuple[int, int]]:
        """The edges (from, to) of the lower convex hull of one group, from the fewest bytes on."""
        hull: list[int] = []
        for option in map(int, options[np.lexsort((self.cost[options], self.nbytes[options]))]):
            if hull and self.cost[option] >= self.cost[hull[-1]]:
                continue  # more bytes for nothing
            while len(hull) > 1 and self._price(hull[-2], hull[-1]) <= self._price(hull[-1], option):
                hull.pop()
            hull.append(option)
        return list(pairwise(hull))

    def _price(self, before: int, after: int) -> float:
        """The cost saved for each byte more."""
        return float((self.cost[before] - self.cost[after]) / (self.nbytes[after] - self.nbytes[before]))

    def best(self, budget: int) -> NDArray[np.int64]:
        """[groups] the option to take in each group, of least cost within `budget` bytes.

        Raises:
            ValueError: the smallest mix takes more than the budget.
        """
        room = budget - int(self.nbytes[self.smallest].sum())
        if room < 0:
            raise ValueError(f"the smallest mix takes {budget - room} bytes")
        if not len(self.path.price) or room >= self._growth.sum():
            return self.path.mix(len(self.path.price))
        taken = self._greedy(room)
        price, bound = self._bound(budget)
        slack = float(self.cost[taken].sum()) - bound
        if slack <= GAP * bound:
            return taken
        reach = self._charged(price) - self._least(price)[self.group] <= slack * (1 + 1e-9)
        reach[taken] = True
        return self._solved(np.flatnonzero(reach), budget, taken, bound)

    @cached_property
    def _growth(self) -> NDArray[np.int64]:
        """[edges] the bytes that each edge of the path adds."""
        return self.nbytes[self.path.after] - self.nbytes[self.path.before]

    def _greedy(self, room: int) -> NDArray[np.int64]:
        """The path followed as far as `room` bytes go, and then whatever else still fits."""
        mix = self.path.start.copy()
        for before, after, more in zip(self.path.before, self.path.after, self._growth, strict=True):
            where = self.group[after]
            if more <= room and mix[where] == before:
                mix[where], room = after, room - more
        return mix

    def _bound(self, budget: int) -> tuple[float, float]:
        """The price per byte at which the path passes the budget, and the cost that no mix within it is below."""
        spent = int(self.nbytes[self.smallest].sum()) + np.cumsum(self._growth)
        price = float(self.path.price[min(int(np.searchsorted(spent, budget, side="right")), len(spent) - 1)])
        return price, float(self._least(price).sum()) - price * budget

    def _charged(self, price: float) -> NDArray[np.float64]:
        """[options] costs with bytes paid for: by what these are above `_least`, a mix is above the bound."""
        return self.cost + price * self.nbytes

    def _least(self, price: float) -> NDArray[np.float64]:
        """[groups] the least of `_charged`."""
        return np.minimum.reduceat(self._charged(price), np.searchsorted(self.group, np.arange(self.groups)))

    def _undominated(self, options: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the options that cost less than all smaller ones of their group; by group, then by bytes."""
        order = options[np.lexsort((self.cost[options], self.nbytes[options], self.group[options]))]
        least, found = np.full(self.groups, np.inf), []
        for option in order.tolist():
            if self.cost[option] < least[self.group[option]]:
                least[self.group[option]] = self.cost[option]
                found.append(option)
        return np.array(found, dtype=np.int64)

    def _solved(
        self, kept: NDArray[np.int64], budget: int, taken: NDArray[np.int64], bound: float
    ) -> NDArray[np.int64]:
        """The integer program over the options `kept`; `taken` where it finds nothing better."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix

        # What an option takes and saves beyond its group's first, the one of fewest bytes: at most one is moved to.
        kept = self._undominated(kept)
        first = kept[np.searchsorted(self.group[kept], np.arange(self.groups))]
        base = first[self.group[kept]]
        kept, base = kept[kept != base], base[kept != base]
        more, saved = self.nbytes[kept] - self.nbytes[base], self.cost[base] - self.cost[kept]
        if not len(kept):
            return first
        unit = int(np.gcd.reduce(more))
        group = np.unique(self.group[kept], return_inverse=True)[1]
        one = csr_matrix((np.ones(len(kept)), (group, np.arange(len(kept)))))
        found = milp(
            -saved / saved.max(),  # near 1, as the solver's tolerances are absolute
            integrality=np.ones(len(kept)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one, 0, 1),
                LinearConstraint(csr_matrix(more // unit), -np.inf, (budget - int(self.nbytes[first].sum())) // unit),
            ],
            # of what can be saved at most, so that the rest of the cost counts too
            options={
                "mip_rel_gap": GAP * self.cost[taken].sum() / (self.cost[first].sum() - bound),
                "node_limit": NODES,
            },
        )
        if found.x is None:
            return taken
        mix, moved = first.copy(), kept[found.x > 0.5]
        mix[self.group[moved]] = moved
        fits = self.nbytes[mix].sum() <= budget  # the solver rounds; bytes are exact
        return mix if fits and self.cost[mix].sum() < self.cost[taken].sum() else taken


@dataclass(frozen=True, eq=False)
class Path:
    """Mixes of falling cost: the smallest, and one more edge taken at each step.

    Attributes:
        start: [groups] the options of the smallest mix.
        before, after: [edges] the option that a step leaves, and the one it takes.
        price: [edges] the cost it saves for each byte, falling.
    """

    start: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    price: NDArray[np.float64]

    def mix(self, steps: int) -> NDArray[np.int64]:
        """[groups] the options after so many steps."""
        replaced = dict(zip(self.before[:steps].tolist(), self.after[:steps].tolist(), strict=True))
        return np.array([_followed(replaced, option) for option in self.start.tolist()], dtype=np.int64)


def _followed(replaced: dict[int, int], option: int) -> int:
    while option in replaced:
        option = replaced[option]
    return option


def knapsack(options: Sequence[Sequence[tuple[int, float]]]) -> Knapsack:
    """From the (bytes, cost) of each option, group by group; every group has one at least."""
    flat = [(number, *pair) for number, pairs in enumerate(options) for pair in pairs]
    group, nbytes, cost = zip(*flat, strict=True) if flat else ((), (), ())
    return Knapsack(np.array(group, np.int64), np.array(nbytes, np.int64), np.array(cost, np.float64))

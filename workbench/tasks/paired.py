"""Two candidates on the same examples: what the difference is, how sure that is, and what would settle it.

Both answered the same questions, so they are compared example by example: how hard a question is then
drops out, and far fewer are needed than for two scores on their own.

* Intervals: the bootstrap over examples (Efron 1979), percentiles of `RESAMPLES` seeded resamples. Where all examples
  agree there is nothing to resample, and the exact bound on what was never seen stands in (Clopper and Pearson 1934).
* Test: the exact one of McNemar (1947), of wins against losses as throws of a fair coin, by SciPy. With scores between
  0 and 1 it is the sign test. Among several candidates and tasks, Holm's (1979) correction.
* How many examples would settle it: Connor (1987), for a power of 80 % at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
ALPHA = 1 - LEVEL
Z, Z_POWER = 1.959964, 0.841621  # normal quantiles of 97.5 % and of the power, 80 %
MARGIN = 0.02  # what counts as no difference worth the name: 2 points
AT_ONCE = 2_000_000  # counts held while resampling
FEW = 20  # examples under which an interval itself is not to be trusted


@dataclass(frozen=True)
class Interval:
    """A mean with its interval of 95 %; not a number where there is nothing to say."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Paired:
    """A candidate against the reference on the examples that both were scored on.

    Attributes:
        examples: how many those are.
        difference: mean score of the candidate less the reference's, −1 to 1.
        wins, losses, ties: examples on which the candidate's score is higher, lower, the same.
        p: of the exact test: the chance of wins and losses at least this uneven if neither is better.
        holm: the same, corrected for all comparisons of the benchmark.
        more: about how many more examples would settle it (see `settles`); 0 where it is settled,
            None where nothing can be said.
    """

    examples: int
    difference: Interval
    wins: int
    losses: int
    ties: int
    p: float
    holm: float
    more: int | None

    @property
    def settled(self) -> bool:
        """Whether the data support that one is better: the corrected test says so, and the interval too."""
        apart = self.difference.low > 0 or self.difference.high < 0
        return self.examples > 1 and self.holm < ALPHA and apart

    @property
    def alike(self) -> bool:
        """Whether the data support that both are as good, within `MARGIN`."""
        return self.examples > 1 and self.difference.low >= -MARGIN and self.difference.high <= MARGIN

    @property
    def verdict(self) -> str:
        """What the data support, in a few words."""
        if self.examples < 2:
            return "too few examples to say anything"
        if self.settled:
            return "better" if self.difference.value > 0 else "worse"
        return f"as good, within {100 * MARGIN:.0f} points" if self.alike else "no difference shown"

    @property
    def settles(self) -> str:
        """What more examples would do, in a sentence; empty where it is settled."""
        if self.examples == 1:
            return "with one example nothing can be said; bring 20 or more"
        if self.examples == 0 or self.settled or self.alike:
            return ""
        if self.more is None:
            return ""
        if abs(self.difference.value) <= MARGIN:
            return f"about {self.more:,} more examples would show whether it is within {100 * MARGIN:.0f} points"
        return (
            f"if the true difference is the {100 * abs(self.difference.value):.1f} points seen, about {self.more:,} "
            "more examples would show it"
        )


def accuracy(scores: Sequence[float], seed: int = 0) -> Interval:
    """Mean of scores from 0 to 1, with its interval."""
    values = np.asarray(scores, float)
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    if len(values) == 1:
        return Interval(float(values[0]), math.nan, math.nan)
    if values.min() == values.max() and values[0] in (0.0, 1.0):
        unseen = _unseen(len(values))
        return Interval(values[0], 0.0, unseen) if values[0] == 0 else Interval(1.0, 1.0 - unseen, 1.0)
    return _bootstrap(values, seed)


def paired(candidate: Sequence[float], reference: Sequence[float], seed: int = 0) -> Paired:
    """Compare two lists of scores of the same examples; where either is not a number, the example is left out."""
    from scipy.stats import binomtest

    both = np.array([candidate, reference], float).reshape(2, -1)
    theirs, ours = both[:, np.isfinite(both).all(0)]
    gains, n = theirs - ours, len(theirs)
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    if n < 2:
        value = float(gains[0]) if n else math.nan
        nothing = Interval(value, math.nan, math.nan)
        return Paired(n, nothing, wins, losses, n - wins - losses, 1.0, 1.0, None)
    difference = _bootstrap(gains, seed) if wins + losses else Interval(0.0, -_unseen(n), _unseen(n))
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return Paired(n, difference, wins, losses, n - wins - losses, p, p, _more(gains))


def corrected(comparisons: Sequence[Paired]) -> list[Paired]:
    """The same with p-values corrected for how many comparisons there are (Holm 1979)."""
    order = sorted(range(len(comparisons)), key=lambda place: comparisons[place].p)
    holm, highest = [0.0] * len(comparisons), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(comparisons) - rank) * comparisons[place].p))
        holm[place] = highest
    made = [replace(one, holm=value) for one, value in zip(comparisons, holm, strict=True)]
    return [replace(one, more=0) if one.settled or one.alike else one for one in made]


def _bootstrap(values: np.ndarray, seed: int) -> Interval:
    """Resampled means. Examples with the same value are drawn together, which is the same and quicker."""
    distinct, counts = np.unique(values, return_counts=True)
    random, n = np.random.default_rng(seed), len(values)
    step = max(1, AT_ONCE // len(distinct))
    means = np.concatenate(
        [
            random.multinomial(n, counts / n, min(step, RESAMPLES - first)) @ distinct / n
            for first in range(0, RESAMPLES, step)
        ]
    )
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(float(values.mean()), float(low), float(high))


def _unseen(n: int) -> float:
    """The share that something may have and yet not be seen in n examples, but for a chance of 2.5 %."""
    return 1 - (ALPHA / 2) ** (1 / n)


def _more(gains: np.ndarray) -> int:
    """How many more examples would settle it, taking differences and their spread to go on as seen.

    For a difference within `MARGIN`: so many that an interval around none reaches no further than that;
    for a larger one: so many that the test shows it with a power of 80 %.
    """
    n, mean = len(gains), abs(float(gains.mean()))
    square = max(float(np.square(gains).mean()), 1 / n)  # where nothing differs, one example might have
    if mean <= MARGIN:
        needed = Z**2 * square / MARGIN**2
    else:
        needed = (Z * math.sqrt(square) + Z_POWER * math.sqrt(max(square - mean**2, 0.0))) ** 2 / mean**2
    return max(1, math.ceil(needed) - n)

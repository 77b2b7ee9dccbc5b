"""Where the prediction is held against measured KL divergences: single matrices, and whole plans.

Weights are rounded to a number of evenly spread levels in each group of inputs, on the
model's own device: any size of error can be had, without a format and its kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.engines.places import Place
from workbench.exceptions import need
from workbench.measure.card import Curve, MatrixCard, Measured
from workbench.measure.probe import Probe

if TYPE_CHECKING:
    import torch

GROUP = 48  # inputs that share a scale: no format's block, so that no model lies on its grid
LEVELS = 16  # of the error that ratios are measured at: 4 bits
SHARE = 0.05  # of the matrices whose ratio is measured: those with the largest cost, where a miss costs most
MOST = 32  # such matrices: a model of many experts has thousands
TARGETS = (0.06, 1.2)  # sums of costs, in nats, at which plans are measured
MIXES = (0.25, 0.7)  # the same for plans that mix levels at random
SPREAD = (0.1, 0.25, 0.5, 1.0, 2.0)  # by which mixes vary the step, as formats of 3 to 7 bits do
APART = math.log(1.25)  # between the least and the greatest 1 + S, for an exponent to be fitted
PIECE = 1 << 24  # weights that are rounded at once
FINE = 256  # levels of the embedding and the head in plans, which are rarely stored in few bits

Levels = dict[str, int]  # a plan to be measured: tensor name -> levels


def rounded(weights: torch.Tensor, levels: int, group: int = GROUP) -> torch.Tensor:
    """`weights` [.., in] on `levels` even steps from the least to the greatest of each group of inputs, float32."""
    torch = need("torch")
    made = torch.empty(weights.shape, dtype=torch.float32, device=weights.device)
    for part, into in zip(_pieces(weights), _pieces(made), strict=True):
        groups = torch.nn.functional.pad(part.float(), (0, -part.shape[-1] % group)).unflatten(-1, (-1, group))
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        step = ((high - low) / (levels - 1)).clamp_(min=torch.finfo(torch.float32).tiny)
        into.copy_(((groups - low) / step).round_().mul_(step).add_(low).flatten(-2)[..., : part.shape[-1]])
    return made


def _pieces(weights: torch.Tensor) -> Sequence[torch.Tensor]:
    """Runs of rows, small enough that a few of them in float32 take little beside the model."""
    rows = max(1, PIECE * len(weights) // max(1, weights.numel()))
    return weights.split(rows)


def cost(card: MatrixCard, error: torch.Tensor) -> float:
    """`MatrixCard.cost` of an error on the model's device, [.., out, in]."""
    torch = need("torch")
    rows = torch.from_numpy(card.row_weights).to(error.device)
    by_input = (rows[..., None, :] @ error.float().square()).squeeze(-2)
    return card.nats(float((by_input * torch.from_numpy(card.cols).to(error.device)).sum()))


def costs(cards: Mapping[str, MatrixCard], places: Mapping[str, Place]) -> Iterator[tuple[str, float]]:
    """(tensor, predicted cost of rounding it to `LEVELS`) for each matrix of the model."""
    for name, place in places.items():
        yield name, cost(cards[name], rounded(place.part, LEVELS) - place.part)


def doubtful(costs: Mapping[str, float]) -> list[str]:
    """The matrices whose ratio is worth a measurement, the costliest first."""
    count = min(MOST, math.ceil(SHARE * len(costs)))
    return sorted((name for name in costs if costs[name] > 0), key=lambda name: -costs[name])[:count]


def measured(probe: Probe, place: Place, sequences: int | None = None) -> float:
    """The KL divergence of rounding one matrix to `LEVELS`, nats per token, on the first `sequences`."""
    with probe.changed(place, rounded(place.part, LEVELS)):
        return probe.kl([place], sequences)


def plans(costs: Mapping[str, float], apart: Iterable[str], seed: int) -> list[Levels]:
    """Plans whose costs add up to about `TARGETS` and `MIXES`; an even rounding error falls with the square of levels.

    Args:
        costs: of each matrix at `LEVELS`.
        apart: the embedding and the head.
    """
    fine = dict.fromkeys(apart, FINE)
    names = [name for name in costs if name not in fine]
    total = sum(costs[name] for name in names)
    random = np.random.default_rng(seed)
    made = []
    for target, mixed in [*((t, False) for t in TARGETS), *((t, True) for t in MIXES)]:
        factor = dict(zip(names, random.choice(SPREAD, len(names)) if mixed else np.ones(len(names)), strict=True))
        at_base = sum(costs[name] * factor[name] ** 2 for name in names) if mixed else total
        step = math.sqrt(target / at_base) if at_base > 0 else 1.0
        made.append({name: _levels(step * factor[name]) for name in names} | fine)
    return made


def _levels(step: float) -> int:
    """Levels whose step is `step` times that of `LEVELS`."""
    return int(min(FINE, max(3, round(1 + (LEVELS - 1) / step))))


def put(
    plan: Levels,
    cards: Mapping[str, MatrixCard],
    places: Mapping[str, Place],
    original: Callable[[str], torch.Tensor],
) -> float:
    """Write a plan into the model; returns the sum of its costs. `original` gives a tensor's unchanged weights."""
    total = 0.0
    for name, levels in plan.items():
        before = original(name).to(places[name].parameter.device)
        after = rounded(before, levels)
        places[name].part.copy_(after)
        total += cost(cards[name], after - before)
    return total


def fitted(points: Sequence[Measured], noise: float = 0.0) -> Curve:
    """The curve through (sum of costs, measured KL) points: least squares on logarithms.

    Where the points lie too close together to tell an exponent it is taken to be 0, and without a point a is 1.

    Args:
        noise: the standard deviation of ln KL that all points share, for they are measured on the same few sequences.
    """
    logs = np.array([(math.log1p(s), math.log(kl / s)) for _, s, kl in points if s > 0 and kl > 0]).reshape(-1, 2)
    if not len(logs):
        return Curve()
    x, y = logs.T
    b, ln_a = np.polyfit(x, y, 1) if len(x) > 2 and np.ptp(x) > APART else (0.0, float(y.mean()))
    if b < 0:  # errors that undo each other are an accident of the text
        b, ln_a = 0.0, float(y.mean())
    spread = math.hypot(math.sqrt(float(np.square(y - b * x - ln_a).sum()) / max(1, len(x) - 2)), noise)
    return Curve(math.exp(ln_a), float(b), spread)

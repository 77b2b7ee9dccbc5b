"""What may be chosen: every group of matrices with the formats that it can have, their bytes and their costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench import figures, formats
from workbench.allocation.groups import Pins, fused, matched, merged
from workbench.allocation.solver import Knapsack, knapsack
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.measure.prices import Prices
from workbench.planning import plan_for, planned, touched

if TYPE_CHECKING:
    from workbench.allocation.priced import PricedPlan


class Quote(NamedTuple):
    """One matrix in one format: what is really stored, its exact bytes, and nats per token."""

    used: str
    nbytes: int
    cost: float


class Choices:
    """A question that plans answer: these formats, these pins, these matrices kept together.

    Args:
        prices: of all formats asked for and pinned.
        asked: the formats to choose from.
        pins: see `pinned`.
        together: patterns of names; None: what a runtime of these formats keeps as one.

    Raises:
        WorkbenchError: the formats run in no program together, a matrix can have none of them, or matrices that
            belong together are pinned to different formats.
    """

    def __init__(
        self,
        prices: Prices,
        asked: Iterable[str | Format],
        pins: Pins | None = None,
        together: Iterable[str] | None = None,
    ) -> None:
        self.prices, self.model = prices, prices.card.checkpoint
        self.asked = list(dict.fromkeys(formats.get(each) for each in asked))
        self.pins = pins or {}
        self.named = {each.name: each for each in (*self.asked, *self.pins.values())}
        check_runnable(list(self.named.values()))
        self.quotes = _quotes(prices)
        allowed = self._allowed()
        matrices = [info for info in self.model.matrices if info.name in allowed]
        bound = fused(matrices, self.asked) if together is None else matched(matrices, together)
        self.groups = merged([info.name for info in matrices], bound)
        self.options = [self._options(group, allowed) for group in self.groups]

    # --- answers --------------------------------------------------------------------------------

    def best(self, budget: int) -> PricedPlan:
        """The plan of least predicted cost of at most `budget` bytes for the whole model."""
        from workbench.allocation.priced import priced

        room = budget - self.rest
        least = self.rest + int(self.knapsack.nbytes[self.knapsack.smallest].sum())
        if least > budget:
            raise too_small(budget, least, self.model.params, self._formats(self.knapsack.smallest).values())
        mix = self._formats(self.knapsack.best(room))
        made = planned(self.model, "", mix)
        return priced(planned(self.model, f"mix of {made.bits:.2f} bits", mix), self)

    @cached_property
    def uniform(self) -> list[PricedPlan]:
        """One format for all, for each that was asked for and that all matrices can have."""
        from workbench.allocation.priced import all_priced

        return all_priced((plan_for(self.model, each) for each in self.asked), self)

    @cached_property
    def rest(self) -> int:
        """Bytes of the tensors that are in no group: they stay as they are."""
        smallest = self.knapsack.smallest
        whole = planned(self.model, "", self._formats(smallest))
        return whole.nbytes - int(self.knapsack.nbytes[smallest].sum())

    @cached_property
    def knapsack(self) -> Knapsack:
        """The same in numbers; its options are those of `options`, one group after another."""
        sums = []
        for group, names in zip(self.groups, self.options, strict=True):
            quotes = [[self.quotes[tensor][name] for tensor in group] for name in names]
            sums.append([(sum(q.nbytes for q in each), sum(q.cost for q in each)) for each in quotes])
        return knapsack(sums)

    def _formats(self, mix: NDArray[np.int64]) -> dict[str, Format]:
        """Tensor -> format for the knapsack's options [groups]."""
        flat = [name for names in self.options for name in names]
        return {
            tensor: self.named[flat[option]]
            for group, option in zip(self.groups, mix.tolist(), strict=True)
            for tensor in group
        }

    # --- what a matrix can have -------------------------------------------------------------------

    def _allowed(self) -> dict[str, list[str]]:
        """Tensor -> the formats it can have: those that their programs store it in, or the one it is pinned to."""
        stored = {each: {info.name for info in touched(self.model, each)} for each in self.named.values()}
        allowed: dict[str, list[str]] = {}
        for tensor, quotes in self.quotes.items():
            wanted = [self.pins[tensor]] if tensor in self.pins else self.asked
            apt = [each for each in wanted if tensor in stored[each]]
            if tensor in self.pins and not apt:
                raise WorkbenchError(tensor, f"the programs that run {wanted[0]} leave it as it is", do="do not pin it")
            names = [each.name for each in apt if each.name in quotes]
            if apt and not names:
                asked = ", ".join(map(str, apt))
                raise WorkbenchError(
                    tensor,
                    f"it cannot be stored as {asked}, which needs the importance of each input; it has none",
                    do="add a format without that need, or pin it: keep={name: format}",
                )
            if names:
                allowed[tensor] = names
        if not allowed:
            raise WorkbenchError(self.model.name, "no matrix of the card can have these formats")
        return allowed

    def _options(self, group: Sequence[str], allowed: Mapping[str, list[str]]) -> list[str]:
        """The formats that all matrices of a group can have; of those that are stored alike, the first."""
        held = {self.pins[tensor].name: tensor for tensor in group if tensor in self.pins}
        if len(held) > 1:
            (first, one), (second, other) = list(held.items())[:2]
            raise WorkbenchError(
                "keep",
                f"{one} is pinned to {first} and {other} to {second}, but they are kept together",
                do="pin both alike, or name what belongs together: together=[...]",
            )
        names = list(held) or [name for name in allowed[group[0]] if all(name in allowed[tensor] for tensor in group)]
        names = [name for name in names if all(name in self.quotes[tensor] for tensor in group)]
        if not names:
            raise WorkbenchError(", ".join(group[:3]), "no format fits all of them, and they are kept together")
        alike = {tuple(self.quotes[tensor][name].used for tensor in group): name for name in reversed(names)}
        return [name for name in names if name in alike.values()]


def _quotes(prices: Prices) -> dict[str, dict[str, Quote]]:
    """Tensor -> format -> quote; a format that came about as a fallback is there under its own name too."""
    found: dict[str, dict[str, Quote]] = defaultdict(dict)
    frame = prices.frame[prices.frame.cost.notna()]
    there = set(prices.frame.tensor)
    columns = (frame[name].tolist() for name in ("tensor", "format", "used", "nbytes", "cost"))
    for tensor, asked, used, nbytes, cost in zip(*columns, strict=True):
        found[tensor][asked] = found[tensor][used] = Quote(used, int(nbytes), float(cost))
    return {info.name: found.get(info.name, {}) for info in prices.card.checkpoint.matrices if info.name in there}


def too_small(budget: int, least: int, params: int, smallest: Iterable[Format]) -> WorkbenchError:
    """What to say of a budget below the `least` bytes, which a mix of the formats `smallest` takes."""
    names = ", ".join(sorted({str(each) for each in smallest}))
    return WorkbenchError(
        "budget",
        f"{budget:,} bytes is less than the smallest mix of these formats takes",
        allowed=f"from {least:,} bytes ({figures.size(least)}, {8 * least / max(params, 1):.3f} bits per weight) on",
        do=f"add a format with fewer bits than {names}",
    )


def check_runnable(asked: Sequence[Format]) -> None:
    """Raise unless some program runs all these formats; one that names no program is an experiment, and goes."""
    asked = [each for each in asked if each.runs_on]
    if asked and not set.intersection(*(set(each.runs_on) for each in asked)):
        found = "; ".join(f"{each} in {', '.join(each.runs_on)}" for each in asked)
        raise WorkbenchError(
            ", ".join(map(str, asked)), f"no program runs them in one model ({found})", do="choose of one family"
        )

"""A plan that a card has priced: what it is predicted to cost in quality, and what any change to it would."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench import figures, formats
from workbench.allocation.choices import Choices
from workbench.allocation.groups import matching
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.measure.card import Curve
from workbench.planning import Plan, planned

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.allocation.front import Front
    from workbench.allocation.verified import Verified
    from workbench.progress import Steps

BAND = 2.0  # standard deviations of ln KL around the card's curve, on either side


@dataclass(frozen=True)
class Prediction:
    """What a plan is predicted to cost in quality, on text like the card's.

    Attributes:
        cost: the sum of its matrices' costs, nats per token.
        kl: KL divergence from the original, nats per token: a S (1 + S)^b of that sum.
        low, high: the band around `kl`, two standard deviations of ln KL as the card measured them;
            not a number where it could not.
    """

    cost: float
    kl: float
    low: float
    high: float

    @classmethod
    def by(cls, curve: Curve, cost: float) -> Prediction:
        """By a card's curve."""
        kl, factor = curve.kl(cost), math.exp(BAND * curve.spread)
        return cls(cost, kl, kl / factor, kl * factor)

    @property
    def perplexity(self) -> float:
        """The plan's perplexity over the original's: e^KL, which holds for text that is as the model expects it."""
        return math.exp(self.kl)

    def __str__(self) -> str:
        band = "" if math.isnan(self.low) else f" ({self.low:.3g} to {self.high:.3g})"
        return f"predicted KL {self.kl:.3g}{band} nats per token, perplexity x {self.perplexity:.4g}"


@dataclass(frozen=True, repr=False)
class PricedPlan(Plan):
    """A `Plan` with a prediction of what it costs; it goes wherever a plan goes.

    Attributes:
        choices: the question it answers, with the price of every matrix in every format.
        predicted: what it is predicted to cost.
    """

    choices: Choices = field(compare=False)
    predicted: Prediction

    def with_(self, changes: Mapping[str, str | Format]) -> PricedPlan:
        """The plan with other formats for some matrices: name or pattern -> format. The last that matches counts.

        Raises:
            WorkbenchError: a pattern that matches nothing, an unknown format, one that was not priced.
        """
        model = self.checkpoint
        changed = {
            info.name: formats.get(format) for pattern, format in changes.items() for info in matching(model, pattern)
        }
        name = self.name if self.name.endswith(EDITED) else self.name + EDITED
        return priced(planned(model, name, {**self.formats, **changed}), self.choices)

    @property
    def importance(self) -> Mapping[str, np.ndarray]:
        """The card's importance matrix, with which every format was priced."""
        return self.choices.prices.card.importance

    @property
    def importance_of(self) -> str:
        said = self.choices.prices.card.provenance
        return f"{said.get('tokens', 0):,} tokens of a sensitivity card's text ({said.get('text_hash', 'unknown')})"

    @property
    def uniform(self) -> PricedPlan | None:
        """The plan of one format (and its fallbacks) that is predicted best with no more bytes; None if none is."""
        smaller = [plan for plan in self.choices.uniform if plan.nbytes <= self.nbytes]
        return min(smaller, key=lambda plan: plan.predicted.kl, default=None)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each matrix: tensor, layer, role, format, nbytes, cost (nats per token), share of all costs."""
        import pandas as pd

        tensors, quotes = self.checkpoint.tensors, self.choices.quotes
        rows = [
            (name, tensors[name].layer, tensors[name].role, used.name, *quotes[name][used.name][1:])
            for name, used in self.formats.items()
        ]
        frame = pd.DataFrame(rows, columns=["tensor", "layer", "role", "format", "nbytes", "cost"])
        return frame.assign(share=frame.cost / max(self.predicted.cost, 1e-300)).astype({"layer": "Int64"})

    def figure(self) -> go.Figure:
        """Layer x matrix, coloured by format."""
        from workbench.allocation.figure import heatmap

        return heatmap(self.table, title=f"{self.name}: {figures.size(self.nbytes)}, {self.bits:.2f} bits per weight")

    def front(self) -> Front:
        """The mixes that no other beats in both bytes and KL, with uniform formats and llama.cpp's rules beside."""
        from workbench.allocation.front import Front

        return Front.of(self)

    def verify(self, text: Any = None, **options: Any) -> Verified:
        """Measure the plan, and beside it the best of one format with no more bytes, by `wb.compare`.

        Args:
            text: what to measure on; another text than the card's is the fairer one.
            options: of `wb.compare`, such as `tokens` or `device`; `context` is the card's unless given.
        """
        from workbench.allocation.verified import verify_steps
        from workbench.progress import drain

        return drain(verify_steps(self, text, **options), label="verifying the plan")

    def verify_steps(self, text: Any = None, **options: Any) -> Steps[Verified]:
        """`verify` as steps."""
        from workbench.allocation.verified import verify_steps

        return verify_steps(self, text, **options)

    def __repr__(self) -> str:
        mix = ", ".join(f"{count} {name}" for name, count in Counter(map(str, self.formats.values())).most_common())
        size = f"{self.nbytes:,} bytes, {self.bits:.2f} bits per weight"
        return f"<Plan {self.name}: {size}, {self.predicted} ({mix})>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self)[1:-1])}</p>"


EDITED = ", edited"


def priced(plan: Plan, choices: Choices) -> PricedPlan:
    """The plan with its prediction.

    Raises:
        WorkbenchError: it has a format that was not priced.
    """
    cost = 0.0
    for tensor, used in plan.formats.items():
        quote = choices.quotes.get(tensor, {}).get(used.name)
        if quote is None:
            known = ", ".join(choices.quotes.get(tensor, {})) or "none"
            raise WorkbenchError(
                f"{tensor} as {used}",
                "the card was not asked for its price",
                allowed=known,
                do=f'wb.plan(card, [..., "{used}"], ...) prices it too',
            )
        cost += quote.cost
    prediction = Prediction.by(choices.prices.curve, cost)
    return PricedPlan(plan.name, plan.checkpoint, plan.formats, plan.nbytes, choices, prediction)


def all_priced(plans: Iterable[Plan], choices: Choices) -> list[PricedPlan]:
    """Those of the plans whose formats were all priced."""
    known = choices.quotes
    return [
        priced(plan, choices)
        for plan in plans
        if all(used.name in known.get(tensor, ()) for tensor, used in plan.formats.items())
    ]

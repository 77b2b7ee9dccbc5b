"""The Pareto front: the mixes that no other beats in both bytes and predicted KL."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workbench import figures
from workbench.allocation.priced import Prediction, PricedPlan, all_priced
from workbench.planning import RECIPES, plan_for

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.allocation.choices import Choices
    from workbench.allocation.solver import Path


@dataclass(frozen=True, eq=False)  # tables have no single truth value
class Front:
    """The front of a question, and plans that people make without one.

    `frame` has a row for each mix and plan: kind ("front", "uniform", "rule" or "plan"), name, nbytes,
    bits (per weight), cost, kl, low, high (nats per token, predicted). The rows of the front are the mixes of its
    convex hull, ascending in bytes: between two neighbours lies the change of a single group of matrices.
    """

    frame: pd.DataFrame
    model: str
    choices: Choices = field(repr=False)

    @classmethod
    def of(cls, plan: PricedPlan) -> Front:
        """The front of the question that `plan` answers."""
        import pandas as pd

        choices = plan.choices
        knapsack, path = choices.knapsack, choices.knapsack.path
        nbytes = choices.rest + knapsack.nbytes[path.start].sum() + _running(knapsack.nbytes, path)
        costs = knapsack.cost[path.start].sum() + _running(knapsack.cost, path)
        curve = choices.prices.curve
        rows = [
            ("front", "", int(size), plan.params, Prediction.by(curve, max(0.0, float(cost))))
            for size, cost in zip(nbytes, costs, strict=True)
        ]
        # llama.cpp's rules, and attention at 8 bits
        rules = (plan_for(choices.model, name) for name in RECIPES)
        others = [("uniform", each) for each in choices.uniform] + [
            ("rule", each) for each in all_priced(rules, choices)
        ]
        rows += [
            (kind, each.name, each.nbytes, each.params, each.predicted) for kind, each in [*others, ("plan", plan)]
        ]
        frame = pd.DataFrame(
            [
                (kind, name, size, 8 * size / max(params, 1), p.cost, p.kl, p.low, p.high)
                for kind, name, size, params, p in rows
            ],
            columns=["kind", "name", "nbytes", "bits", "cost", "kl", "low", "high"],
        )
        return cls(frame, choices.model.name, choices)

    def figure(self) -> go.Figure:
        """Bits per weight against predicted KL."""
        from workbench.allocation.figure import pareto

        return pareto(self.frame, title=self.model)

    def __repr__(self) -> str:
        front = self.frame[self.frame.kind == "front"]
        low, high = (f"{figures.size(row.nbytes)}, KL {row.kl:.3g}" for row in front.iloc[[0, -1]].itertuples())
        return f"<Front of {self.model}: {len(front)} mixes from {low} to {high} nats per token, predicted>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self)[1:-1])}</p>"


def _running(values: np.ndarray, path: Path) -> np.ndarray:
    """[edges + 1] what each step of the path has added up to."""
    return np.concatenate([[0], np.cumsum(values[path.after] - values[path.before])])

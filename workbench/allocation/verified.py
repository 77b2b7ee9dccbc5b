"""A plan held against measurement, beside one format for all of no more bytes."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from workbench.allocation.priced import Prediction, PricedPlan
from workbench.measure.comparing import compare_steps
from workbench.measure.comparison import Comparison, Estimate
from workbench.measure.text import Text
from workbench.progress import Steps

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)  # comparisons hold arrays
class Verified:
    """What was measured of a plan.

    Attributes:
        plan: the plan.
        measured: it against the original.
        uniform: the plan of one format that is predicted best with no more bytes; None where none is as small.
        uniform_measured: that against the original, on the same tokens.
    """

    plan: PricedPlan
    measured: Comparison
    uniform: PricedPlan | None = None
    uniform_measured: Comparison | None = None

    @cached_property
    def lead(self) -> Estimate | None:
        """The uniform plan's KL less the plan's, nats per token, over the same tokens; below 0 where it is better."""
        if self.uniform_measured is None:
            return None
        each = self.uniform_measured.by_token["kl"].astype(float) - self.measured.by_token["kl"]
        return Estimate.of(each.mean(), each)

    @property
    def worse(self) -> bool:
        """Whether the plan measures worse than the uniform one."""
        return self.lead is not None and self.lead.value < 0

    @property
    def best(self) -> PricedPlan:
        """The one to take: the plan, or the uniform one if that measures better."""
        return self.uniform if self.worse and self.uniform is not None else self.plan

    @property
    def frame(self) -> pd.DataFrame:
        """A row for the plan, one for the uniform plan: name, nbytes, bits, predicted, low, high, measured, error."""
        import pandas as pd

        found = [(self.plan, self.measured), (self.uniform, self.uniform_measured)]
        rows = [
            (plan.name, plan.nbytes, plan.bits, *_band(plan.predicted), measured.kl.value, measured.kl.error)
            for plan, measured in found
            if plan is not None and measured is not None
        ]
        columns = ["name", "nbytes", "bits", "predicted", "low", "high", "measured", "error"]
        return pd.DataFrame(rows, columns=columns)

    def figure(self) -> go.Figure:
        """Predicted against measured KL."""
        from workbench.allocation.figure import agreement

        return agreement(self.frame, title=self.plan.checkpoint.name)

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        return "".join(f"<p>{html.escape(line)}</p>" for line in self._lines())

    def _lines(self) -> list[str]:
        plan, kl = self.plan, self.measured.kl
        off = kl.value / plan.predicted.kl - 1 if plan.predicted.kl > 0 else float("nan")
        lines = [
            f"{plan.name}: measured KL {kl} nats per token, perplexity x {self.measured.ratio}",
            f"{plan.predicted}: the measurement is {abs(off):.0%} {'above' if off > 0 else 'below'} it",
        ]
        if self.uniform is None or self.uniform_measured is None or self.lead is None:
            return [*lines, f"no single one of these formats is as small as {plan.nbytes:,} bytes"]
        beside = f"{self.uniform.name} for all, {self.uniform.nbytes:,} bytes of {plan.nbytes:,}"
        share = 1 - kl.value / self.uniform_measured.kl.value if self.uniform_measured.kl.value else 0.0
        if not self.worse:
            return [*lines, f"{beside}: measured KL {self.uniform_measured.kl}; the plan has {share:.0%} less"]
        return [
            *lines,
            f"This plan measures worse than {beside}: KL {self.uniform_measured.kl}, lower by {-self.lead.value:.3g} ± "
            f"{self.lead.error:.2g}",
            "Take that one: verified.best",
        ]


def _band(predicted: Prediction) -> tuple[float, float, float]:
    return predicted.kl, predicted.low, predicted.high


def verify_steps(plan: PricedPlan, text: Text, **options: Any) -> Steps[Verified]:
    """Measure a plan and the uniform one beside it, both with the importance that the card priced them with.

    By default in sequences as long as the card's: the same weights lose less where predictions rest on a longer
    context.
    """
    options.setdefault("context", plan.choices.prices.card.provenance["context"])
    measured = yield from compare_steps(plan.checkpoint, plan, text, **options)
    uniform = plan.uniform
    if uniform is None or uniform.formats == plan.formats:
        return Verified(plan, measured)
    return Verified(plan, measured, uniform, (yield from compare_steps(plan.checkpoint, uniform, text, **options)))

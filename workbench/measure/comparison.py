"""How far a model's predictions are from its reference's, as figures: what `wb.compare` gives."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from workbench import figures
from workbench.measure.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

# What is known of each scored token: KL in nats; −log of the chance that either model gave the token that
# followed; whether both would have put the same one first.
TOKEN = np.dtype([("kl", "<f4"), ("nll_reference", "<f4"), ("nll_candidate", "<f4"), ("same_top", "?")])

# The percentiles that llama-perplexity prints; 100 is the maximum, 0 the minimum.
KL_PERCENTILES = (100, 99.9, 99, 95, 90, 50, 10, 5, 1, 0.1, 0)
DELTA_P_PERCENTILES = (100, 99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1, 0)


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Comparison:
    """A candidate's predictions against its reference's, on one text.

    Figures are over `scored` tokens: those in the second half of each chunk, given all of the chunk
    that comes before them (as in llama.cpp's llama-perplexity).

    Attributes:
        reference, candidate: their names.
        fingerprints: of the reference's and the candidate's weights.
        text: a hash of the text's tokens.
        context: tokens of a chunk.
        by_token: what is known of each scored token, of dtype `TOKEN`, [chunks, tokens].
        computed: how each side was computed: by what engine, in what and where.
        versions: of the packages, and of this measure's code.
        notes: what must be known of the reference to read the figures.
    """

    reference: str
    candidate: str
    fingerprints: tuple[str, str]
    text: str
    context: int
    by_token: np.ndarray
    computed: tuple[str, str]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def chunks(self) -> int:
        return self.by_token.shape[0]

    @property
    def scored(self) -> int:
        """The number of tokens that the figures are over."""
        return self.by_token.size

    def _of(self, field: str) -> np.ndarray:
        return self.by_token[field].astype(np.float64)

    # --- KL divergence ------------------------------------------------------------------------

    @cached_property
    def kl(self) -> Estimate:
        """Mean KL(reference‖candidate), nats per token."""
        return Estimate.of(self._of("kl").mean(), self._of("kl"))

    @cached_property
    def kl_percentiles(self) -> dict[float, float]:
        """Percent of tokens -> the KL, in nats, that so many do not exceed; 50 is the median."""
        return _percentiles(self._of("kl"), KL_PERCENTILES)

    @property
    def median(self) -> float:
        """Median KL, nats."""
        return self.kl_percentiles[50]

    # --- perplexity ---------------------------------------------------------------------------

    @cached_property
    def perplexity(self) -> Estimate:
        """exp(mean of −log p(the token that followed)) of the candidate."""
        return self._perplexity("nll_candidate")

    @cached_property
    def reference_perplexity(self) -> Estimate:
        return self._perplexity("nll_reference")

    def _perplexity(self, field: str) -> Estimate:
        value = np.exp(self._of(field).mean())
        return Estimate.of(value, value * self._of(field))

    @cached_property
    def log_ratio(self) -> Estimate:
        """Mean log of candidate's perplexity over reference's: how much more the text surprises it, nats per token."""
        return Estimate.of(self._more_surprised.mean(), self._more_surprised)

    @cached_property
    def ratio(self) -> Estimate:
        """The candidate's perplexity over the reference's."""
        value = np.exp(self._more_surprised.mean())
        return Estimate.of(value, value * self._more_surprised)

    @cached_property
    def difference(self) -> Estimate:
        """The candidate's perplexity less the reference's."""
        there, here = self.perplexity.value, self.reference_perplexity.value
        return Estimate.of(there - here, there * self._of("nll_candidate") - here * self._of("nll_reference"))

    @property
    def _more_surprised(self) -> np.ndarray:
        return self._of("nll_candidate") - self._of("nll_reference")

    # --- the token that followed, and the one put first ----------------------------------------

    @cached_property
    def delta_p(self) -> np.ndarray:
        """How much more chance the candidate gave the token that followed: −1 to 1, [chunks, tokens]."""
        return np.exp(-self._of("nll_candidate")) - np.exp(-self._of("nll_reference"))

    @cached_property
    def mean_delta_p(self) -> Estimate:
        return Estimate.of(self.delta_p.mean(), self.delta_p)

    @cached_property
    def rms_delta_p(self) -> Estimate:
        """Root of the mean square of Δp."""
        square = np.square(self.delta_p)
        value = np.sqrt(square.mean())
        return Estimate.of(value, square / (2 * value) if value else square)

    @cached_property
    def delta_p_percentiles(self) -> dict[float, float]:
        return _percentiles(self.delta_p, DELTA_P_PERCENTILES)

    @cached_property
    def same_top(self) -> Estimate:
        """The share of tokens for which both models put the same one first."""
        return Estimate.of(self._of("same_top").mean(), self._of("same_top"))

    # --- shown --------------------------------------------------------------------------------

    def table(self) -> pd.DataFrame:
        """A row for each figure, in the order and the units of llama-perplexity.

        Columns: figure, value, error, error_by_chunk (see `Estimate`; missing for percentiles), unit.
        """
        import pandas as pd

        rows = [
            ("PPL(candidate)", self.perplexity, ""),
            ("PPL(reference)", self.reference_perplexity, ""),
            ("ln(PPL ratio)", self.log_ratio, "nats per token"),
            ("PPL ratio", self.ratio, ""),
            ("PPL difference", self.difference, ""),
            ("mean KL", self.kl, "nats per token"),
            *((f"{_label(share)} KL", value, "nats") for share, value in self.kl_percentiles.items()),
            ("mean Δp", self.mean_delta_p.percent, "%"),
            *((f"{_label(share)} Δp", 100 * value, "%") for share, value in self.delta_p_percentiles.items()),
            ("RMS Δp", self.rms_delta_p.percent, "%"),
            ("same top token", self.same_top.percent, "%"),
        ]
        nan = float("nan")
        found = [
            (name, each.value, each.error, each.error_by_chunk, unit)
            if isinstance(each, Estimate)
            else (name, each, nan, nan, unit)
            for name, each, unit in rows
        ]
        return pd.DataFrame(found, columns=["figure", "value", "error", "error_by_chunk", "unit"])

    def frame(self) -> pd.DataFrame:
        """A row for each scored token: chunk, position in it, kl, nll_reference, nll_candidate, same_top, delta_p."""
        import pandas as pd

        chunks, tokens = self.by_token.shape
        first = self.context - tokens  # of the tokens that are predicted
        return pd.DataFrame(
            {
                "chunk": np.repeat(np.arange(chunks), tokens),
                "position": np.tile(np.arange(first, self.context), chunks),
                **{field: self.by_token[field].ravel() for field in TOKEN.names or ()},
                "delta_p": self.delta_p.ravel(),
            }
        )

    def figure(self) -> go.Figure:
        """How KL and Δp are spread over the tokens."""
        return figures.divergence(self.frame(), title=f"{self.candidate} against {self.reference}")

    def __repr__(self) -> str:
        return "\n".join([self._headline(), *self._lines(), *self.notes])

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(line)}</p>" for line in [*self._lines(), *self.notes])
        table = self.table().to_html(index=False, float_format=lambda value: f"{value:.4g}", na_rep="", escape=True)
        title = f"<p><b>{html.escape(self._headline())}</b></p>"
        return f"{title}{said}<details><summary>all figures</summary>{table}</details>"

    def _headline(self) -> str:
        return f"{self.candidate} against {self.reference}"

    def _lines(self) -> list[str]:
        kl, top = self.kl_percentiles, self.same_top.percent
        here, there = self.computed
        by_chunk = f" (± {self.kl.error_by_chunk:.2g} over chunks)" if self.chunks > 1 else ""
        return [
            f"KL divergence {self.kl}{by_chunk} nats per token; median {kl[50]:.3g}, 99 % of tokens under {kl[99]:.3g}",
            f"same top token {top} %, RMS Δp {self.rms_delta_p.percent} %",
            f"perplexity {self.perplexity.value:.5g}, of the reference {self.reference_perplexity.value:.5g}: "
            f"ratio {self.ratio}",
            f"{self.scored:,} tokens scored: the second half of {self.chunks} chunks of {self.context}; computed by "
            + (here if here == there else f"{here}; the candidate by {there}"),
        ]


def _percentiles(values: np.ndarray, shares: tuple[float, ...]) -> dict[float, float]:
    return dict(zip(shares, np.percentile(values, shares).tolist(), strict=True))


def _label(share: float) -> str:
    return {100.0: "maximum", 50.0: "median", 0.0: "minimum"}.get(share, f"{share:g} %")

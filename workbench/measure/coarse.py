"""What a server's likeliest tokens say of a comparison, as figures: what `wb.compare` gives for a server."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from workbench.measure.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd

WORST = 8  # positions that are shown


@dataclass(frozen=True)
class Position:
    """One position of the text, at which a server listed its likeliest next tokens.

    Attributes:
        chunk, position: where the token lies that is predicted.
        kl: KL(reference‖candidate) with the tokens told apart that can be, and all others taken as one, nats.
        told_apart: how many tokens that are.
        covered: their probability together in the candidate, 0 to 1.
        same_top: 1 or 0, whether both put the same token first; not a number where the server tells its text alone, and
            several tokens have it.
        delta_p: how much more chance the candidate gave the token that followed, -1 to 1; not a number where it is
            not among those told apart.
        top_reference, top_candidate: the texts put first.
    """

    chunk: int
    position: int
    kl: float
    told_apart: int
    covered: float
    same_top: float
    delta_p: float
    top_reference: str
    top_candidate: str


@dataclass(frozen=True, eq=False)
class Coarse:
    """A candidate of which only the likeliest tokens are known, against its reference, at some positions of a text.

    What is known in full elsewhere (`Comparison`) is bounded or partial here, and named so. Standard errors take
    the positions, which lie spread over the text, as independent of each other.

    Attributes:
        reference, candidate: their names.
        fingerprint: of the reference's weights; a server tells none of its own.
        text: a hash of the text's tokens.
        context: tokens of a chunk; positions lie in its second half.
        by_position: what is known of each position.
        listed: how many tokens were asked for at each.
        reread: how many positions are left out, since the text before them is read as other tokens.
        untold: how many are left out, since the server listed nothing there.
        computed: how each side was computed: by what engine, in what and where.
        versions: of the packages, and of this measure's code.
        notes: what must be known to read the figures.
    """

    reference: str
    candidate: str
    fingerprint: str
    text: str
    context: int
    by_position: tuple[Position, ...]
    listed: int
    reread: int
    untold: int
    computed: tuple[str, str]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def positions(self) -> int:
        """How many positions the figures are over."""
        return len(self.by_position)

    def _mean(self, field: str) -> Estimate:
        values = np.array([getattr(each, field) for each in self.by_position], np.float64)
        values = values[~np.isnan(values)]
        return Estimate.of(values.mean() if len(values) else np.nan, values[None] if len(values) else np.zeros((1, 1)))

    @cached_property
    def kl_at_least(self) -> Estimate:
        """Mean KL of what can be told apart, nats per token: at most the mean KL at these positions."""
        return self._mean("kl")

    @cached_property
    def same_top(self) -> Estimate:
        """The share of positions where both put the same token first, of those where that can be told."""
        return self._mean("same_top")

    @cached_property
    def covered(self) -> Estimate:
        """The candidate's probability of the tokens that are told apart, 0 to 1: near 1, little is hidden."""
        return self._mean("covered")

    @cached_property
    def mean_delta_p(self) -> Estimate:
        """Mean Δp of the token that followed, over the positions where it is told apart; not a number if nowhere."""
        return self._mean("delta_p")

    @property
    def followed(self) -> int:
        """At how many positions the token that followed is told apart."""
        return sum(not math.isnan(each.delta_p) for each in self.by_position)

    @property
    def unsure(self) -> int:
        """At how many positions it cannot be told whether the same token is put first."""
        return sum(math.isnan(each.same_top) for each in self.by_position)

    def table(self) -> pd.DataFrame:
        """A row for each figure; columns: figure, value, error (one standard error), unit."""
        import pandas as pd

        nan, delta, top = float("nan"), self.mean_delta_p.percent, self.same_top.percent
        covered, kl = self.covered.percent, self.kl_at_least
        rows = [
            ("KL, at least", kl.value, kl.error, "nats per token"),
            ("same top token", top.value, top.error, "%"),
            ("probability of the tokens told apart", covered.value, covered.error, "%"),
            ("mean Δp where the following token is told apart", delta.value, delta.error, "%"),
            ("positions with the following token told apart", self.followed, nan, ""),
            ("positions", self.positions, nan, ""),
            ("positions where the token put first is not told", self.unsure, nan, ""),
            ("positions left out: read as other tokens", self.reread, nan, ""),
            ("positions left out: nothing listed", self.untold, nan, ""),
        ]
        return pd.DataFrame(rows, columns=["figure", "value", "error", "unit"])

    def frame(self) -> pd.DataFrame:
        """A row for each position, with the columns of `Position`."""
        import pandas as pd

        return pd.DataFrame([asdict(each) for each in self.by_position])

    def __repr__(self) -> str:
        return "\n".join([self._headline(), *self._lines(), *self.notes])

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(line)}</p>" for line in [*self._lines(), *self.notes])
        table = self.table().to_html(index=False, float_format=lambda value: f"{value:.4g}", na_rep="", escape=True)
        title = f"<p><b>{html.escape(self._headline())}</b></p>"
        all_figures = f"<details><summary>all figures</summary>{table}</details>"
        return f"{title}{said}{all_figures}<details><summary>the worst positions</summary>{self._worst()}</details>"

    def _worst(self) -> str:
        """The positions of the highest KL as markup; texts, which are a stranger's, as Python would write them."""
        shown = self.frame().nlargest(WORST, "kl")[["chunk", "position", "kl", "top_reference", "top_candidate"]]
        tops = {name: shown[name].map(lambda text: f"{text!r:.40}") for name in ("top_reference", "top_candidate")}
        return str(shown.assign(**tops).to_html(index=False, float_format=lambda value: f"{value:.3g}", escape=True))

    def _headline(self) -> str:
        return f"{self.candidate} against {self.reference}, by its likeliest tokens alone"

    def _lines(self) -> list[str]:
        here, there = self.computed
        reasons = {"are read as other tokens": self.reread, "have no list": self.untold}
        left = "; ".join(f"{count} left out, which {why}" for why, count in reasons.items() if count)
        unsure = f" (not told at {self.unsure} positions)" if self.unsure else ""
        followed = f"mean Δp {self.mean_delta_p.percent} % at the {self.followed} positions where it is known"
        return [
            f"KL divergence at least {self.kl_at_least} nats per token: of a server's {self.listed} likeliest tokens, "
            "all others taken as one",
            f"same top token {self.same_top.percent} %{unsure}; the tokens told apart have {self.covered.percent} % of "
            "the probability",
            f"{followed if self.followed else 'Δp is known nowhere'}",
            f"{self.positions:,} positions, spread over the second halves of chunks of {self.context}"
            f"{f' ({left})' if left else ''}; computed by {here}; the candidate by {there}",
        ]

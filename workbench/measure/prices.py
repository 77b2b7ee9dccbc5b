"""What every matrix costs in every format: exact bytes, and nats per token by the sensitivity card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import nan, prod
from typing import TYPE_CHECKING

import numpy as np

from workbench import files, formats
from workbench.checkpoint import TensorInfo
from workbench.formats import Format
from workbench.measure import figure, losses
from workbench.measure.card import Card, Curve
from workbench.measure.errors import checked_formats
from workbench.progress import Steps, drain

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)  # tables have no single truth value
class Prices:
    """A row for each matrix and format.

    `frame` has the columns tensor, layer, role, rows, cols, format (asked for), used (what the
    shape allows), nbytes (exact), cost (nats per token, predicted; missing where the format cannot
    be made for that matrix), params. `curve` leads from a sum of costs to a KL divergence.
    """

    frame: pd.DataFrame
    curve: Curve
    card: Card = field(repr=False)

    @property
    def formats(self) -> list[str]:
        """The formats asked for."""
        return list(self.frame.format.unique())

    def heatmap(self, format: str | None = None) -> go.Figure:
        """Layer x matrix, coloured by cost; a menu switches between the formats."""
        return figure.heatmap(self.frame, [formats.get(format).name] if format else self.formats)

    def by_layer(self) -> go.Figure:
        """What each layer costs, a line for each format."""
        return figure.by_layer(self.frame, self.formats)

    @property
    def summary(self) -> pd.DataFrame:
        """A row for each format, as if every matrix were in it: bytes, sum of costs, and matrices without a price."""
        groups = self.frame.groupby("format", sort=False)
        return groups.agg(
            nbytes=("nbytes", "sum"), cost=("cost", "sum"), unpriced=("cost", lambda c: int(c.isna().sum()))
        )

    def __repr__(self) -> str:
        head = f"Prices of {self.frame.tensor.nunique()} matrices of {self.card.model}, nats per token"
        return "\n".join([head, self.summary.to_string(float_format="%.3g")])

    def _repr_html_(self) -> str:
        return self.summary.to_html(float_format=lambda value: f"{value:.3g}", escape=True)


def prices(card: Card, wanted: str | Format | Iterable[str | Format], *, threads: int | None = None) -> Prices:
    """Quantize every matrix of the card into every format, with its importance, and predict what it costs.

    Finished matrices are in the cache, so a second call takes no time and an interrupted one goes on.

    Raises:
        WorkbenchError: an unknown format, or one that cannot be made here.
    """
    return drain(prices_steps(card, wanted, threads=threads), label="pricing formats")


def prices_steps(
    card: Card, wanted: str | Format | Iterable[str | Format], *, threads: int | None = None
) -> Steps[Prices]:
    import pandas as pd

    asked = checked_formats(wanted, calibrated=True)
    matrices = [card.checkpoint.tensors[name] for name in card.matrices]
    found = yield from losses.measure_steps(
        card.checkpoint, matrices, asked, lambda info: _Sensitivity.of(info, card), threads
    )
    rows = []
    for info in matrices:
        *experts, out, inputs = info.shape
        for fmt in asked:
            used = fmt.used_for((out, inputs))
            sums = found.get((info.name, used.name), {})
            rows.append(
                {
                    "tensor": info.name,
                    "layer": info.layer,
                    "role": info.role,
                    "rows": prod(experts) * out,
                    "cols": inputs,
                    "format": fmt.name,
                    "used": used.name,
                    "nbytes": prod(experts) * used.nbytes((out, inputs)),
                    "cost": card.matrices[info.name].nats(sums.get("sensitivity_error", nan)),
                    "params": info.params,
                }
            )
    return Prices(pd.DataFrame(rows).astype({"layer": "Int64"}), card.curve, card)


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class _Sensitivity:
    """One matrix of a card as what weighs its errors; of the sums, `MatrixCard.nats` makes a price."""

    digest: str
    importance: np.ndarray | None
    rows: np.ndarray
    cols: np.ndarray

    @classmethod
    def of(cls, info: TensorInfo, card: Card) -> _Sensitivity:
        matrix, importance = card.matrices[info.name], card.importance.get(info.name)
        parts = [part.tobytes() for part in (matrix.rows, matrix.cols, importance) if part is not None]
        return cls(files.digest(*parts), importance, matrix.row_weights, matrix.cols)

    def sums(self, matrix: np.ndarray, kind: str, rows: slice) -> losses.Sums:
        """1/2 sum_ij r_i c_j E_ij^2 / sum(r) over a run of rows of the error E; of the weights themselves nothing."""
        if kind == "":
            return {}
        squares = np.square(matrix)
        weights = self.rows[rows]
        if weights.ndim == 1:
            return {"sensitivity" + kind: float((weights @ squares) @ self.cols)}
        by_input = np.einsum("eo,eoi->ei", weights, squares.reshape(*weights.shape, -1))
        return {"sensitivity" + kind: float((by_input * self.cols[rows]).sum(dtype=np.float64))}

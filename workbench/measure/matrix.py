"""One matrix opened: where its weights lie, and which input channels a format hurts most."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from workbench import figures
from workbench.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.measure.published import Published

if TYPE_CHECKING:
    import plotly.graph_objects as go

BINS = 120
OUTLIERS = 8  # channels marked in the picture and listed beside it
STACKED = 4  # experts of a large stack that are opened
ROWS = 1 << 20  # weights opened at most; a larger matrix is judged by evenly spread runs of its rows


@dataclass(frozen=True, eq=False)  # tables and arrays have no single truth value
class MatrixDetail:
    """What one format does inside one matrix W [out, in].

    Attributes:
        edges, original, stored: histogram of the weights before and after; edges [bins + 1]
            in units of the weights, counts [bins]; what is stored beyond the originals is in the outer bins.
        channel_error: [in] sum_i (W - Q)_ij^2, times the channel's importance where the
            text gave one, over the mean channel's.
        outliers: input channels with the largest weights (times root of importance), worst first.
        rows: how many rows were opened, of how many.
    """

    tensor: str
    format: str
    shape: tuple[int, int]
    rows: int
    edges: np.ndarray
    original: np.ndarray
    stored: np.ndarray
    channel_error: np.ndarray
    outliers: tuple[int, ...]
    weighted: bool

    def figure(self, *, stacked: bool = False) -> go.Figure:
        """Two plots: the weights before and after, and the error by input channel."""
        return figures.matrix(
            title=f"{self.tensor} in {self.format}",
            edges=self.edges,
            original=self.original,
            stored=self.stored,
            channel_error=self.channel_error,
            outliers=self.outliers,
            stacked=stacked,
        )

    def __repr__(self) -> str:
        share = f"{self.rows} of {self.shape[0]} rows opened, " if self.rows < self.shape[0] else ""
        basis = "importance-weighted" if self.weighted else "unweighted"
        worst = ", ".join(f"{channel} ({self.channel_error[channel]:.2g}x)" for channel in self.outliers)
        return (
            f"{self.tensor} [{self.shape[0]} x {self.shape[1]}] in {self.format}: {share}{basis} error by channel\n"
            f"outlier input channels, with their error against the mean channel's: {worst}"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def open_matrix(
    checkpoint: Checkpoint, tensor: str, format: Format | Published, importance: np.ndarray | None = None
) -> MatrixDetail:
    """Quantize one matrix, or take it from another checkpoint, and look inside.

    Args:
        importance: mean(x_j^2) of its inputs, float32 [in]; weighs channels, and is given to the format.

    Raises:
        WorkbenchError: no such tensor, or it is not a matrix.
    """
    info = checkpoint.tensors.get(tensor)
    if info is None or not info.is_matrix:
        raise WorkbenchError(
            tensor,
            "not a matrix of this model",
            allowed=", ".join(each.name for each in checkpoint.matrices[:5]) + ", ...",
        )
    cols = info.shape[-1]
    shape = (info.params // cols, cols)
    used = format if isinstance(format, Published) else format.used_for(shape)
    if importance is not None and importance.ndim == 2:
        importance = importance.mean(0)  # of a stack's experts
    weights = _spread_rows(partial(checkpoint.read, tensor), info.shape, used.row_multiple, ROWS)
    if isinstance(used, Published):
        if tensor not in used.twins:
            raise WorkbenchError(tensor, used.unlike.get(tensor, f"{used.name} has it not"))
        stored = _spread_rows(partial(used.read, tensor), info.shape, 1, ROWS)
    else:
        stored = used.roundtrip(weights, importance if used.importance != "unused" else None)
    reach = float(np.abs(weights).max()) or 1.0
    edges = np.linspace(-reach, reach, BINS + 1)
    weight = importance if importance is not None else np.ones(cols, np.float32)
    channel_error = np.square(weights - stored).sum(0, dtype=np.float64) * weight
    salience = np.square(weights).max(0) * weight
    return MatrixDetail(
        tensor=tensor,
        format=used.name,
        shape=shape,
        rows=len(weights),
        edges=edges,
        original=np.histogram(weights, edges)[0],
        stored=np.histogram(np.clip(stored, -reach, reach), edges)[0],
        channel_error=channel_error / (channel_error.mean() or 1.0),
        outliers=tuple(int(channel) for channel in np.argsort(-salience)[:OUTLIERS]),
        weighted=importance is not None,
    )


def _spread_rows(
    read: Callable[[slice | None], np.ndarray], shape: tuple[int, ...], multiple: int, most: int
) -> np.ndarray:
    """All rows of a matrix of ordinary size, or evenly spread runs of a large one, float32 [rows, in].

    Of a large stack [experts, out, in] some experts are opened, one at a time.
    """
    if len(shape) == 3 and prod(shape) > most:
        chosen = np.unique(np.linspace(0, shape[0] - 1, min(shape[0], STACKED)).round().astype(int))
        parts = []
        for expert in chosen.tolist():
            one = read(slice(expert, expert + 1))[0]
            parts.append(_spread_rows(partial(_rows_of, one), shape[1:], multiple, most // len(chosen)).copy())
        return np.concatenate(parts)
    rows, cols = prod(shape[:-1]), shape[-1]
    length = multiple * max(1, 64 // multiple)
    wanted = max(1, most // cols // length)
    starts = range(0, rows, length)
    if len(starts) <= wanted or len(shape) == 3:
        return read(None).reshape(rows, cols)
    chosen = np.linspace(0, len(starts) - 1, wanted).round().astype(int)
    return np.concatenate([read(slice(starts[i], min(starts[i] + length, rows))) for i in chosen])


def _rows_of(matrix: np.ndarray, rows: slice | None) -> np.ndarray:
    return matrix if rows is None else matrix[rows]

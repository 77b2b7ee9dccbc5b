"""The error table: what each format does to every matrix of a model.

With W the weights [out, in], Q what a format gives back for them, and x the inputs the
matrix meets on a calibration text (a row of X for each token):

* ``weight_error``      |W - Q|^2 / |W|^2, squared Frobenius norms;
* ``importance_error``  sum_ij d_j (W - Q)_ij^2 / sum_ij d_j W_ij^2 with d_j = mean(x_j^2),
  the weighting of llama.cpp's importance matrix (ggml-org/llama.cpp, tools/imatrix);
* ``output_error``      |X (W - Q)^T|^2 / |X W^T|^2, the layer-wise objective of GPTQ
  (Frantar et al. 2022, arXiv 2210.17323, eq. 1) relative to the output's own size.

All three are dimensionless, 0 for a perfect copy, and about 1 when nothing is left.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from workbench import checkpoint as checkpoints
from workbench import figures, formats
from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.measure import losses
from workbench.measure.calibration import Calibration, calibrate_steps, calibration_so_far
from workbench.measure.matrix import MatrixDetail, open_matrix
from workbench.measure.published import Published
from workbench.measure.sides import is_source
from workbench.measure.text import Text
from workbench.progress import Steps, drain

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ERRORS = ("weight_error", "importance_error", "output_error")
Asked: TypeAlias = "str | Format | Checkpoint | Path"


@dataclass(frozen=True, eq=False)  # tables and arrays have no single truth value
class ErrorTable:
    """A row for each matrix and format; `frame` is the tidy pandas table.

    Columns: tensor, layer, role, rows, cols, format (asked for), used (what the shape
    allows), bytes, bits_per_weight, weight_error and, with a calibration text,
    importance_error and output_error. A figure that could not be measured is missing,
    never zero.
    """

    frame: pd.DataFrame
    model: Checkpoint
    calibration: Calibration | None = None
    formats: tuple[str, ...] = ()
    published: Mapping[str, Published] = field(default_factory=dict)  # those of the formats that are checkpoints

    def heatmap(self, metric: str | None = None, format: str | None = None) -> go.Figure:
        """Layer x matrix on one log colour scale; a menu switches between the formats."""
        names = [self._named(format)] if format else list(self.formats)
        return figures.heatmap(self.frame, metric or self.best_metric, names)

    def compare(self, first: str, second: str, metric: str | None = None) -> go.Figure:
        """Two formats side by side on one scale, and the ratio between them."""
        a, b = self._named(first), self._named(second)
        return figures.compare(self.frame, metric or self.best_metric, a, b)

    def matrix(self, tensor: str, format: str) -> MatrixDetail:
        """One matrix opened: weight histogram, error by input channel, outlier channels."""
        importance = self.calibration.mean_square(tensor) if self.calibration and tensor in self.calibration else None
        return open_matrix(self.model, tensor, self.published.get(format) or formats.get(format), importance)

    def worst(self, count: int = 10, metric: str | None = None, format: str | None = None) -> pd.DataFrame:
        """The matrices that suffer most, worst first, in one format or in all."""
        rows = self.frame[self.frame.format == self._named(format)] if format else self.frame
        return rows.sort_values(metric or self.best_metric, ascending=False).head(count)

    def _named(self, format: str) -> str:
        """A format as the table calls it; a checkpoint by its own name."""
        return format if format in self.published else formats.get(format).name

    @property
    def best_metric(self) -> str:
        """The figure nearest to what the model's user notices, of those that were measured."""
        return "output_error" if self.calibration else "weight_error"

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row for each format: bytes and bits per weight of all matrices, errors as means over weights."""
        frame = self.frame
        params = frame.rows * frame.cols
        total = frame.assign(params=params).groupby("format", sort=False)[["bytes", "params"]].sum()
        table = total.assign(bits_per_weight=8 * total.bytes / total.params)
        for metric in ERRORS:
            if metric in frame:
                weight = params.where(frame[metric].notna())
                sums = (frame[metric] * weight).groupby(frame.format, sort=False).sum(min_count=1)
                table[metric] = sums / weight.groupby(frame.format, sort=False).sum(min_count=1)
        fallbacks = (frame.used != frame.format).groupby(frame.format, sort=False).sum()
        return table.assign(fallbacks=fallbacks).drop(columns="params").reset_index()

    def __repr__(self) -> str:
        basis = f", {self.calibration.tokens} calibration tokens" if self.calibration else ""
        head = f"Errors of {self.frame.tensor.nunique()} matrices of {self.model.name} in {len(self.formats)} formats"
        return "\n".join([head + basis, *self.model.notes, self.summary.to_string(index=False, float_format="%.3g")])

    def _repr_html_(self) -> str:
        lines = self.__repr__().split("\n")[: 1 + len(self.model.notes)]
        said = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        table = self.summary.assign(bytes=self.summary.bytes.map(figures.size)).rename(columns={"bytes": "size"})
        return said + table.to_html(index=False, float_format=lambda value: f"{value:.3g}", escape=True)


def errors(
    model: Checkpoint | str | Path,
    formats: Asked | Iterable[Asked],
    text: Text | None = None,
    *,
    tensors: str | None = None,
    tokens: int = 2048,
    threads: int | None = None,
    anyway: bool = False,
) -> ErrorTable:
    """Measure what each format does to every matrix.

    Args:
        model: an opened checkpoint, or whatever `wb.load` takes.
        formats: names of `wb.formats.FORMATS`; or other checkpoints of this model (opened, or paths), such
            as a quantized one that somebody published, measured as its weights are.
        text: calibration text; with it, importance and output errors are measured too,
            and formats that take an importance matrix are given one, as llama.cpp does.
        tensors: only tensors whose name matches this pattern (``"*down_proj*"``).
        tokens: how much of the text is used at most.
        threads: worker threads; as many as this process may use by default.
        anyway: go ahead even if it does not fit in memory.

    Streams: a run of rows at a time, so memory stays at a few such runs per thread
    whatever the model's size. Each finished matrix is in the cache, so an interrupted
    table goes on where it stopped.

    Raises:
        WorkbenchError: unknown format, no matching tensor, or a format that needs an
            importance matrix without a text; before anything is read.
        DoesNotFit: before a weight is read; or when memory ran out all the same, with what was
            measured by then kept.
    """
    steps = errors_steps(model, formats, text, tensors=tensors, tokens=tokens, threads=threads, anyway=anyway)
    return drain(steps, label="measuring errors")


def errors_steps(
    model: Checkpoint | str | Path,
    formats: Asked | Iterable[Asked],
    text: Text | None = None,
    *,
    tensors: str | None = None,
    tokens: int = 2048,
    threads: int | None = None,
    anyway: bool = False,
) -> Steps[ErrorTable]:
    asked = _listed(formats)
    made = [each for each in asked if not _is_checkpoint(each)]
    known = checked_formats(made, calibrated=text is not None) if made or not asked else []
    opened = model if isinstance(model, Checkpoint) else (yield from checkpoints.load_steps(model))
    wanted: list[losses.Maker] = [*known]
    for each in asked:
        if _is_checkpoint(each):
            other = each if isinstance(each, Checkpoint) else (yield from checkpoints.load_steps(each))
            wanted.append(Published.of(opened, other, [found.name for found in wanted]))
    matrices = _matching(opened, tensors)
    return (yield from table_steps(opened, wanted, matrices, text, tokens=tokens, threads=threads, anyway=anyway))


def table_steps(
    opened: Checkpoint,
    wanted: Sequence[losses.Maker],
    matrices: list[TensorInfo],
    text: Text | None = None,
    *,
    tokens: int = 2048,
    threads: int | None = None,
    anyway: bool = False,
) -> Steps[ErrorTable]:
    """`errors_steps` for some matrices of an opened model, and formats that are checked already."""
    calibration = None
    if text is not None:
        calibration = yield from calibrate_steps(opened, text, tokens=tokens, anyway=anyway)
    found = yield from losses.measure_steps(
        opened, matrices, wanted, lambda info: _Basis.of(info, calibration), threads, anyway=anyway
    )
    return _table(opened, wanted, matrices, calibration, found)


def errors_so_far(
    model: Checkpoint,
    formats: str | Format | Iterable[str | Format],
    text: Text | None = None,
    *,
    tensors: str | None = None,
    tokens: int = 2048,
) -> ErrorTable:
    """What the cache holds of a table, measuring nothing: what a cancelled run has kept.

    Rows that are not measured yet have missing errors.
    """
    wanted = checked_formats(formats, calibrated=text is not None)
    matrices = _matching(model, tensors)
    calibration = calibration_so_far(model, text, tokens=tokens) if text is not None else None
    found: dict[losses.Key, losses.Sums] = {}
    if text is None or calibration is not None:
        found = losses.known(model, matrices, wanted, lambda info: _Basis.of(info, calibration))
    return _table(model, wanted, matrices, calibration, found)


def _listed(asked: Asked | Iterable[Asked]) -> list[Any]:
    return [asked] if isinstance(asked, str | Format | Checkpoint | Path) else list(asked)


def _is_checkpoint(asked: object) -> bool:
    return isinstance(asked, Checkpoint | Path) or (isinstance(asked, str) and is_source(asked))


def _matching(opened: Checkpoint, pattern: str | None) -> list[TensorInfo]:
    matrices = [info for info in opened.matrices if pattern is None or fnmatch(info.name, pattern)]
    if not matrices:
        names = ", ".join(info.name for info in opened.matrices[:5])
        raise WorkbenchError(pattern or opened.name, "no matrix of the model matches", allowed=f"{names}, ...")
    return matrices


def checked_formats(asked: str | Format | Iterable[str | Format], calibrated: bool) -> list[Format]:
    """The formats asked for, each once; WorkbenchError for one that is unknown or cannot be made with what there is."""
    names = _listed(asked)
    wanted = list(dict.fromkeys(formats.get(name) for name in names))
    if not wanted:
        raise WorkbenchError("formats", "the list is empty", allowed=", ".join(formats.FORMATS))
    unmade = [fmt.name for fmt in wanted if not fmt.encodable]
    if unmade:
        makeable = [fmt.name for fmt in formats.FORMATS.values() if fmt.encodable]
        raise WorkbenchError(", ".join(unmade), "it can be read but not made here", allowed=", ".join(makeable))
    needy = [fmt.name for fmt in wanted if fmt.importance == "required"]
    if needy and not calibrated:
        raise WorkbenchError(
            ", ".join(needy),
            "needs an importance matrix, which is measured on a calibration text",
            do="wb.errors(model, formats, text=...)",
        )
    return wanted


@dataclass(frozen=True, eq=False)  # tables and arrays have no single truth value
class _Basis:
    """What one matrix is fed, if the text says: the importance of its input channels and a sample of inputs."""

    digest: str = ""
    importance: np.ndarray | None = None
    sample: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(cls, info: TensorInfo, calibration: Calibration | None) -> _Basis:
        if calibration is None or info.name not in calibration:
            return cls()
        return cls(calibration.digest, calibration.mean_square(info.name), calibration.sample(info.name))

    def sums(self, matrix: np.ndarray, kind: str, rows: slice) -> losses.Sums:
        """Squared norms of `matrix` [rows, in]: plain, weighted by importance, and of its output."""
        if self.importance is None or self.sample is None:
            flat = matrix.reshape(-1)
            return {"weight" + kind: float(np.dot(flat, flat))}
        by_channel = np.einsum("ij,ij->j", matrix, matrix)
        output = (self.sample @ matrix.T).reshape(-1)
        return {
            "weight" + kind: float(by_channel.sum(dtype=np.float64)),
            "importance" + kind: float(by_channel @ self.importance),
            "output" + kind: float(np.dot(output, output)),
        }


def _table(
    opened: Checkpoint,
    wanted: Sequence[losses.Maker],
    matrices: list[TensorInfo],
    calibration: Calibration | None,
    found: dict[losses.Key, losses.Sums],
) -> ErrorTable:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for info in matrices:
        shape = losses.as_matrix(info.shape)
        for fmt in wanted:
            used = losses.used_for(info, fmt)
            if used is None:
                continue
            sums = found.get((info.name, used.name), {})
            nbytes = used.nbytes_of(info.name) if isinstance(used, Published) else used.nbytes(shape)
            rows.append(
                {
                    "tensor": info.name,
                    "layer": info.layer,
                    "role": info.role,
                    "rows": shape[0],
                    "cols": shape[1],
                    "format": fmt.name,
                    "used": used.name,
                    "bytes": nbytes,
                    "bits_per_weight": 8 * nbytes / info.params,
                    **{f"{kind}_error": _ratio(sums, kind) for kind in ("weight", "importance", "output")},
                }
            )
    frame = pd.DataFrame(rows).astype({"layer": "Int64"})
    if calibration is None:
        frame = frame.drop(columns=["importance_error", "output_error"])
    published = {fmt.name: fmt for fmt in wanted if isinstance(fmt, Published)}
    return ErrorTable(frame, opened, calibration, tuple(fmt.name for fmt in wanted), published)


def _ratio(sums: losses.Sums, kind: str) -> float:
    """The error over the whole; a matrix of zeros that stays zero has lost nothing."""
    lost, whole = sums.get(f"{kind}_error"), sums.get(kind)
    if lost is None or whole is None:
        return float("nan")
    return lost / whole if whole > 0 else (0.0 if lost == 0 else float("inf"))

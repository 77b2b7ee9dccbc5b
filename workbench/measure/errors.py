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
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from workbench import checkpoint as checkpoints
from workbench import figures, files, formats
from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.engines.weights import chunks
from workbench.exceptions import WorkbenchError, need
from workbench.formats import Format
from workbench.measure.calibration import Calibration, calibrate_steps, calibration_so_far
from workbench.measure.matrix import MatrixDetail, open_matrix
from workbench.progress import Progress, Steps, drain

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

AHEAD = 16  # runs of rows queued for each thread: matrices differ tenfold in work, and no thread should wait
ERRORS = ("weight_error", "importance_error", "output_error")


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

    def heatmap(self, metric: str | None = None, format: str | None = None) -> go.Figure:
        """Layer x matrix on one log colour scale; a menu switches between the formats."""
        names = [formats.get(format).name] if format else list(self.formats)
        return figures.heatmap(self.frame, metric or self.best_metric, names)

    def compare(self, first: str, second: str, metric: str | None = None) -> go.Figure:
        """Two formats side by side on one scale, and the ratio between them."""
        a, b = formats.get(first).name, formats.get(second).name
        return figures.compare(self.frame, metric or self.best_metric, a, b)

    def matrix(self, tensor: str, format: str) -> MatrixDetail:
        """One matrix opened: weight histogram, error by input channel, outlier channels."""
        importance = self.calibration.mean_square(tensor) if self.calibration and tensor in self.calibration else None
        return open_matrix(self.model, tensor, formats.get(format), importance)

    def worst(self, count: int = 10, metric: str | None = None, format: str | None = None) -> pd.DataFrame:
        """The matrices that suffer most, worst first, in one format or in all."""
        rows = self.frame[self.frame.format == formats.get(format).name] if format else self.frame
        return rows.sort_values(metric or self.best_metric, ascending=False).head(count)

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
    formats: str | Format | Iterable[str | Format],
    text: str | None = None,
    *,
    tensors: str | None = None,
    tokens: int = 2048,
    threads: int | None = None,
) -> ErrorTable:
    """Measure what each format does to every matrix.

    Args:
        model: an opened checkpoint, or whatever `wb.load` takes.
        formats: names of `wb.formats.FORMATS`.
        text: calibration text; with it, importance and output errors are measured too,
            and formats that take an importance matrix are given one, as llama.cpp does.
        tensors: only tensors whose name matches this pattern (``"*down_proj*"``).
        tokens: how much of the text is used at most.
        threads: worker threads; as many as this process may use by default.

    Streams: a run of rows at a time, so memory stays at a few such runs per thread
    whatever the model's size. Each finished matrix is in the cache, so an interrupted
    table goes on where it stopped.

    Raises:
        WorkbenchError: unknown format, no matching tensor, or a format that needs an
            importance matrix without a text; before anything is read.
    """
    steps = errors_steps(model, formats, text, tensors=tensors, tokens=tokens, threads=threads)
    return drain(steps, label="measuring errors")


def errors_steps(
    model: Checkpoint | str | Path,
    formats: str | Format | Iterable[str | Format],
    text: str | None = None,
    *,
    tensors: str | None = None,
    tokens: int = 2048,
    threads: int | None = None,
) -> Steps[ErrorTable]:
    wanted = _formats(formats, calibrated=text is not None)
    opened = model if isinstance(model, Checkpoint) else (yield from checkpoints.load_steps(model))
    matrices = _matching(opened, tensors)
    calibration = (yield from calibrate_steps(opened, text, tokens=tokens)) if text is not None else None
    found = yield from _measure(opened, matrices, wanted, calibration, threads or _cores())
    return _table(opened, wanted, matrices, calibration, found)


def errors_so_far(
    model: Checkpoint,
    formats: str | Format | Iterable[str | Format],
    text: str | None = None,
    *,
    tensors: str | None = None,
    tokens: int = 2048,
) -> ErrorTable:
    """What the cache holds of a table, measuring nothing: what a cancelled run has kept.

    Rows that are not measured yet have missing errors.
    """
    wanted = _formats(formats, calibrated=text is not None)
    matrices = _matching(model, tensors)
    calibration = calibration_so_far(model, text, tokens=tokens) if text is not None else None
    found: dict[Key, Sums] = {}
    if text is None or calibration is not None:
        cache = files.cache("errors")
        for info in matrices:
            found.update(_known(cache, _keys(model, info, wanted, calibration)))
    return _table(model, wanted, matrices, calibration, found)


def _matching(opened: Checkpoint, pattern: str | None) -> list[TensorInfo]:
    matrices = [info for info in opened.matrices if pattern is None or fnmatch(info.name, pattern)]
    if not matrices:
        names = ", ".join(info.name for info in opened.matrices[:5])
        raise WorkbenchError(pattern or opened.name, "no matrix of the model matches", allowed=f"{names}, ...")
    return matrices


def _formats(asked: str | Format | Iterable[str | Format], calibrated: bool) -> list[Format]:
    names = [asked] if isinstance(asked, (str, Format)) else list(asked)
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


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Stacked experts [experts, out, in] are measured as one tall matrix: formats work along the input."""
    return math.prod(shape[:-1]), shape[-1]


Sums = dict[str, float]  # squared norms: "weight", "weight_error", ...; their ratios are the figures
Key = tuple[str, str]  # tensor name, stored format


def _measure(
    opened: Checkpoint,
    matrices: list[TensorInfo],
    wanted: list[Format],
    calibration: Calibration | None,
    threads: int,
) -> Steps[dict[Key, Sums]]:
    """Squared norms for every matrix and stored format: from the cache, or measured and put there.

    Matrices are worked on in order, a few runs of rows ahead of the one that is waited for.
    """
    if any(fmt.family == "bitsandbytes" for fmt in wanted):
        need("bitsandbytes")
    cache = files.cache("errors")
    found: dict[Key, Sums] = {}
    total, done = sum(info.params for info in matrices), 0
    with _Workers(opened, calibration, threads) as workers:
        ahead: deque[tuple[TensorInfo, dict[Key, str], list[Future]]] = deque()
        queue = iter(matrices)
        while True:
            while sum(len(runs) for _, _, runs in ahead) < AHEAD * threads and (info := next(queue, None)):
                keys = _keys(opened, info, wanted, calibration)
                known = _known(cache, keys)
                missing = [formats.get(where[1]) for where in keys if where not in known]
                found.update(known)
                ahead.append((info, keys, workers.submit(info, missing)))
            if not ahead:
                return found
            info, keys, runs = ahead.popleft()
            while wait(runs, timeout=0.2).not_done:
                yield Progress(done, total, " weights", info.name)  # a chance to cancel inside a large matrix
            fresh = {(info.name, name): sums for name, sums in _total([run.result() for run in runs]).items()}
            cache.put({keys[where]: sums for where, sums in fresh.items()})
            found.update(fresh)
            done += info.params
            yield Progress(done, total, " weights", info.name)


def _keys(
    opened: Checkpoint, info: TensorInfo, wanted: Iterable[Format], calibration: Calibration | None
) -> dict[Key, str]:
    """The cache key of each distinct format a matrix is really stored in: several may fall back to one."""
    stored = dict.fromkeys(fmt.used_for(_as_matrix(info.shape)) for fmt in wanted)
    return {(info.name, fmt.name): _cache_key(opened, info, fmt, calibration) for fmt in stored if not info.problem}


def _known(cache: files.Cache, keys: dict[Key, str]) -> dict[Key, Sums]:
    values = cache.get(list(keys.values()))
    return {where: cast(Sums, values[key]) for where, key in keys.items() if key in values}


def _cache_key(opened: Checkpoint, info: TensorInfo, fmt: Format, calibration: Calibration | None) -> str:
    codec = sys.modules[type(fmt).__module__]
    code = files.code_version(sys.modules[__name__], codec)
    basis = calibration.digest if calibration and info.name in calibration else ""
    return files.digest(opened.digest(info.name), list(info.shape), fmt.name, code, basis)


class _Workers:
    """A few threads, each turning a run of rows into squared norms for all formats wanted of it.

    A run is read, quantized and measured by one thread, so memory is a few runs a thread
    whatever the model's size. On leaving the block, runs not begun are dropped and the
    others stop at their next format.
    """

    def __init__(self, opened: Checkpoint, calibration: Calibration | None, threads: int) -> None:
        self.opened, self.calibration = opened, calibration
        self.torch = sys.modules.get("torch")  # there already if a format computes in it
        self.torch_threads = self.torch.get_num_threads() if self.torch else 0
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="errors", initializer=self._alone)
        self.cancelled = threading.Event()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *reason: object) -> None:
        self.cancelled.set()
        self.pool.shutdown(wait=False, cancel_futures=True)  # a kernel, or a library's import, ends when it ends
        if self.torch:
            self.torch.set_num_threads(self.torch_threads)

    def _alone(self) -> None:
        """One torch thread for each worker: with more they wait for one another most of the time."""
        if self.torch:
            self.torch.set_num_threads(1)

    def submit(self, info: TensorInfo, wanted: list[Format]) -> list[Future]:
        """Begin a matrix; each future gives the sums of a run of its rows, by format name."""
        if not wanted:
            return []
        basis = _Basis.of(info, self.calibration)
        return [self.pool.submit(self._sums, info, wanted, rows, basis) for rows in _runs(info, wanted)]

    def _sums(self, info: TensorInfo, wanted: list[Format], rows: slice, basis: _Basis) -> dict[str, Sums]:
        if self.cancelled.is_set():
            return {}
        weights = self.opened.read(info.name, rows).reshape(-1, info.shape[-1])
        whole = basis.norms(weights, "")
        sums = {}
        for fmt in wanted:
            if self.cancelled.is_set():
                break
            importance = basis.importance if fmt.importance != "unused" else None
            if importance is None and fmt.importance == "required":
                continue  # an embedding, say, that the text gives no importance for: reported as not measured
            lost = fmt.roundtrip(weights, importance)
            np.subtract(weights, lost, out=lost)
            sums[fmt.name] = whole | basis.norms(lost, "_error")
        return sums


def _runs(info: TensorInfo, fmts: Sequence[Format]) -> Iterator[slice]:
    """Runs of the first axis, of about a million weights, cut where every format can be cut.

    The first axis is the rows of a matrix, or the experts of stacked ones.
    """
    multiple = max(fmt.row_multiple for fmt in fmts) if len(info.shape) == 2 else 1
    return chunks(info.shape[0], math.prod(info.shape[1:]), multiple)


@dataclass(frozen=True, eq=False)  # tables and arrays have no single truth value
class _Basis:
    """What one matrix is fed: the importance of its input channels and a sample of inputs, if known."""

    importance: np.ndarray | None = None
    sample: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(cls, info: TensorInfo, calibration: Calibration | None) -> _Basis:
        if calibration is None or info.name not in calibration:
            return cls()
        return cls(calibration.mean_square(info.name), calibration.sample(info.name))

    def norms(self, matrix: np.ndarray, kind: str) -> Sums:
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


def _total(runs: list[dict[str, Sums]]) -> dict[str, Sums]:
    """Adds the runs of a matrix; a format that not every run has (cancelled) is left out."""
    names = set.intersection(*(set(run) for run in runs)) if runs else set()
    return {name: {part: sum(run[name][part] for run in runs) for part in runs[0][name]} for name in names}


def _table(
    opened: Checkpoint,
    wanted: list[Format],
    matrices: list[TensorInfo],
    calibration: Calibration | None,
    found: dict[Key, Sums],
) -> ErrorTable:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for info in matrices:
        shape = _as_matrix(info.shape)
        for fmt in wanted:
            used = fmt.used_for(shape)
            sums = found.get((info.name, used.name), {})
            nbytes = used.nbytes(shape)
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
    return ErrorTable(frame, opened, calibration, tuple(fmt.name for fmt in wanted))


def _ratio(sums: Sums, kind: str) -> float:
    """The error over the whole; a matrix of zeros that stays zero has lost nothing."""
    lost, whole = sums.get(f"{kind}_error"), sums.get(kind)
    if lost is None or whole is None:
        return float("nan")
    return lost / whole if whole > 0 else (0.0 if lost == 0 else float("inf"))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""What a format loses in each matrix, as sums of squares: from the cache, or measured in threads and kept there.

Every figure that depends on W - Q, with Q what a format gives back for the weights W, is
such a sum, and is measured here: a run of rows at a time, whatever the model's size. What
is summed is the `Basis`'s business.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeAlias, cast

import numpy as np

from workbench import figures, files, fit
from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.formats import Format
from workbench.formats.bitsandbytes import library
from workbench.formats.rows import chunks, cores
from workbench.measure.published import Published
from workbench.progress import Progress, Steps

AHEAD = 16  # runs of rows queued for each thread: matrices differ tenfold in work, and no thread should wait
COPIES = 4  # of a run of rows in float32 that a thread holds, what was read included: measured 2.1 (Q2_K) to 3.5 (NF4)

Sums = dict[str, float]
Key = tuple[str, str]  # tensor name, stored format
Maker: TypeAlias = "Format | Published"  # of other weights: a format, or another checkpoint


class Basis(Protocol):
    """What is known of one matrix, and which sums follow from it.

    Attributes:
        digest: names what is known in cache keys; empty for nothing.
        importance: mean square of each input, float32 [in], or [experts, in] of a stack; None: not known.
    """

    @property
    def digest(self) -> str: ...

    @property
    def importance(self) -> np.ndarray | None: ...

    def sums(self, matrix: np.ndarray, kind: str, rows: slice) -> Sums:
        """The sums of a matrix [rows, in] over the run `rows` of the first axis: kind "" of W, "_error" of W - Q."""


def measure_steps(
    opened: Checkpoint,
    matrices: list[TensorInfo],
    wanted: Sequence[Maker],
    basis_of: Callable[[TensorInfo], Basis],
    threads: int | None = None,
    *,
    anyway: bool = False,
) -> Steps[dict[Key, Sums]]:
    """The sums of every matrix and stored format: those in the cache, the others measured and put there.

    Matrices are worked on in order, a few runs of rows ahead of the one that is waited for.
    A format that needs an importance where there is none has no sums.

    Raises:
        DoesNotFit: before a weight is read, unless `anyway`; or when memory ran out all the
            same: what was measured by then is in the cache.
    """
    if any(fmt.family == "bitsandbytes" for fmt in wanted):
        library()
    threads = threads or cores()
    needs, what = threads * _needed(matrices, wanted), f"measuring {opened.name} in {threads} threads"
    instead = f"threads=1 ({figures.size(needs // threads)})" if threads > 1 else ""
    fit.ask(needs, what, "cpu", instead=instead, anyway=anyway)
    with fit.guarded(needs, what, "cpu", instead=instead):
        return (yield from _measured_steps(opened, matrices, wanted, basis_of, threads))


def _needed(matrices: list[TensorInfo], wanted: Sequence[Maker]) -> int:
    """Bytes that a thread takes for the longest run of rows."""
    longest = max((next(_runs(info, wanted)).stop * math.prod(info.shape[1:]) for info in matrices), default=0)
    return COPIES * 4 * longest


def _measured_steps(
    opened: Checkpoint,
    matrices: list[TensorInfo],
    wanted: Sequence[Maker],
    basis_of: Callable[[TensorInfo], Basis],
    threads: int,
) -> Steps[dict[Key, Sums]]:
    cache = files.cache("errors")
    found: dict[Key, Sums] = {}
    total, done = sum(info.params for info in matrices), 0
    with _Workers(opened, threads) as workers:
        ahead: deque[tuple[TensorInfo, dict[Key, str], list[Future]]] = deque()
        queue = iter(matrices)
        while True:
            while sum(len(runs) for _, _, runs in ahead) < AHEAD * threads and (info := next(queue, None)):
                basis = basis_of(info)
                keys = _keys(opened, info, wanted, basis)
                known = _known(cache, keys)
                missing = [fmt for fmt in _stored(info, wanted) if (info.name, fmt.name) not in known]
                found.update(known)
                ahead.append((info, keys, workers.submit(info, missing, basis)))
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


def known(
    opened: Checkpoint, matrices: Iterable[TensorInfo], wanted: Sequence[Maker], basis_of: Callable[[TensorInfo], Basis]
) -> dict[Key, Sums]:
    """The sums that the cache holds, measuring nothing."""
    cache = files.cache("errors")
    found: dict[Key, Sums] = {}
    for info in matrices:
        found.update(_known(cache, _keys(opened, info, wanted, basis_of(info))))
    return found


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Stacked experts [experts, out, in] are measured as one tall matrix: formats work along the input."""
    return math.prod(shape[:-1]), shape[-1]


def used_for(info: TensorInfo, fmt: Maker) -> Maker | None:
    """What a matrix is really stored in; None: another checkpoint that has it not."""
    if isinstance(fmt, Published):
        return fmt if info.name in fmt.twins else None
    return fmt.used_for(as_matrix(info.shape))


def _stored(info: TensorInfo, wanted: Iterable[Maker]) -> list[Maker]:
    """Each distinct format that a matrix is really stored in: several may fall back to one."""
    found = dict.fromkeys(used_for(info, fmt) for fmt in wanted)
    return [] if info.problem else [used for used in found if used is not None]


def _keys(opened: Checkpoint, info: TensorInfo, wanted: Iterable[Maker], basis: Basis) -> dict[Key, str]:
    return {(info.name, fmt.name): _cache_key(opened, info, fmt, basis) for fmt in _stored(info, wanted)}


def _known(cache: files.Cache, keys: dict[Key, str]) -> dict[Key, Sums]:
    values = cache.get(list(keys.values()))
    return {where: cast(Sums, values[key]) for where, key in keys.items() if key in values}


def _cache_key(opened: Checkpoint, info: TensorInfo, fmt: Maker, basis: Basis) -> str:
    what = fmt.digest(info.name) if isinstance(fmt, Published) else fmt.name
    own = [sys.modules[each.__module__] for each in (_Workers, type(basis), type(fmt))]
    code = files.code_version(*own)
    return files.digest(opened.digest(info.name), list(info.shape), what, code, basis.digest)


class _Workers:
    """A few threads, each turning a run of rows into sums for all formats wanted of it.

    A run is read, quantized and measured by one thread, so memory is a few runs a thread
    whatever the model's size. On leaving the block, runs not begun are dropped and the
    others stop at their next format.
    """

    def __init__(self, opened: Checkpoint, threads: int) -> None:
        self.opened = opened
        self.torch = sys.modules.get("torch")  # there already if a format computes in it
        self.torch_threads = self.torch.get_num_threads() if self.torch else 0
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="losses", initializer=self._alone)
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

    def submit(self, info: TensorInfo, wanted: Sequence[Maker], basis: Basis) -> list[Future]:
        """Begin a matrix; each future gives the sums of a run of its rows, by format name."""
        if not wanted:
            return []
        return [self.pool.submit(self._sums, info, wanted, rows, basis) for rows in _runs(info, wanted)]

    def _sums(self, info: TensorInfo, wanted: Sequence[Maker], rows: slice, basis: Basis) -> dict[str, Sums]:
        if self.cancelled.is_set():
            return {}
        weights = self.opened.read(info.name, rows)
        experts = len(weights) if weights.ndim == 3 else 1
        weights = weights.reshape(-1, info.shape[-1])
        whole = basis.sums(weights, "", rows)
        sums = {}
        for fmt in wanted:
            if self.cancelled.is_set():
                break
            importance = basis.importance if fmt.importance != "unused" else None
            if importance is None and fmt.importance == "required":
                continue  # an embedding, say, that the text gives no importance for: reported as not measured
            if isinstance(fmt, Published):
                lost = np.require(fmt.read(info.name, rows).reshape(weights.shape), np.float32, ["C", "W"])
            elif importance is not None and importance.ndim == 2:
                parts = zip(np.split(weights, experts), importance[rows], strict=True)
                lost = np.concatenate([fmt.roundtrip(expert, own) for expert, own in parts])
            else:
                lost = fmt.roundtrip(weights, importance)
            np.subtract(weights, lost, out=lost)
            sums[fmt.name] = whole | basis.sums(lost, "_error", rows)
        return sums


def _runs(info: TensorInfo, fmts: Sequence[Maker]) -> Iterator[slice]:
    """Runs of the first axis, of about a million weights, cut where every format can be cut.

    The first axis is the rows of a matrix, or the experts of stacked ones.
    """
    multiple = max(fmt.row_multiple for fmt in fmts) if len(info.shape) == 2 else 1
    return chunks(info.shape[0], math.prod(info.shape[1:]), multiple)


def _total(runs: list[dict[str, Sums]]) -> dict[str, Sums]:
    """Adds the runs of a matrix; a format that not every run has (cancelled) is left out."""
    names = set.intersection(*(set(run) for run in runs)) if runs else set()
    return {name: {part: sum(run[name][part] for run in runs) for part in runs[0][name]} for name in names}

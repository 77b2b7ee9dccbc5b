"""The bytes of tensors as a plan stores them, in order, a run of rows at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from workbench.checkpoint import Checkpoint, TensorInfo, values
from workbench.formats import Format
from workbench.formats.rows import CHUNK, chunks, cores

AHEAD = 4  # runs queued for each thread; each is a few MB, so memory stays the same for a model of any size
PIECE = 4 << 20  # bytes copied at once
COPIES = 4  # of a run in float32 while it is read and encoded


def stream(
    source: Checkpoint,
    tensors: list[TensorInfo],
    formats: Mapping[str, Format],
    importance: Mapping[str, np.ndarray],
    threads: int | None = None,
) -> Iterator[tuple[TensorInfo, bytes]]:
    """(tensor, the next of its bytes) for each tensor in turn, encoded ahead in threads.

    A tensor without a format, or stored in it already, is copied as it is. A run is read,
    encoded and handed on by itself, so no more than a few runs a thread are held.
    """
    workers = threads or cores()
    with ThreadPoolExecutor(workers, thread_name_prefix="export") as pool:
        waiting: deque[tuple[TensorInfo, Future[bytes]]] = deque()
        try:
            for info in tensors:
                for run in _runs(source, info, formats.get(info.name), importance.get(info.name)):
                    waiting.append((info, pool.submit(*run)))
                    if len(waiting) >= AHEAD * workers:
                        done, part = waiting.popleft()
                        yield done, part.result()
            while waiting:
                done, part = waiting.popleft()
                yield done, part.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def held(tensors: list[TensorInfo], threads: int | None = None) -> int:
    """Bytes that `stream` may hold at once: each thread's run as float32, the queued ones as stored."""
    runs = (CHUNK if len(info.shape) < 3 else max(CHUNK, info.params // info.shape[0]) for info in tensors)
    largest = 4 * max(runs, default=0)
    workers = threads or cores()
    return workers * (COPIES + AHEAD) * largest


def is_copied(info: TensorInfo, used: Format | None) -> bool:
    """Whether the tensor's bytes go into the file as they are."""
    return used is None or used.name == info.encoding


def nbytes(info: TensorInfo, used: Format | None) -> int:
    """Bytes of the tensor's data in the file."""
    if used is None or is_copied(info, used):
        return info.nbytes
    *experts, rows, cols = info.shape
    return math.prod(experts) * used.nbytes((rows, cols))


def _runs(source: Checkpoint, info: TensorInfo, used: Format | None, importance: np.ndarray | None) -> Iterator[tuple]:
    """(function, its arguments) for each run, in the order of the file."""
    if used is None or is_copied(info, used):
        for first in range(0, info.nbytes, PIECE):
            yield _copied, info, first, min(PIECE, info.nbytes - first)
    elif len(info.shape) == 2:
        for rows in chunks(info.shape[0], info.shape[1], used.row_multiple):
            yield _encoded, source, info.name, rows, used, importance
    else:  # experts lie one after the other, and each may have an importance of its own
        for expert in range(info.shape[0]):
            own = importance[expert] if importance is not None and importance.ndim == 2 else importance
            yield _encoded, source, info.name, slice(expert, expert + 1), used, own


def _copied(info: TensorInfo, first: int, count: int) -> bytes:
    return values.bytes_at(info, first, count).tobytes()


def _encoded(source: Checkpoint, name: str, rows: slice, used: Format, importance: np.ndarray | None) -> bytes:
    weights = source.read(name, rows)
    encoded = used.encode(weights.reshape(-1, weights.shape[-1]), importance if used.importance != "unused" else None)
    (part,) = encoded.parts.values()  # ggml's types and plain floats are stored in one array
    return part.tobytes()

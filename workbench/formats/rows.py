"""Runs of rows: how a matrix is worked through a piece at a time, by as many threads as there are processors."""

from __future__ import annotations

import os
from collections.abc import Iterator

CHUNK = 1 << 20  # weights handled at once: 4 MB of float32, a fraction of a second in the slowest format


def chunks(rows: int, cols: int, multiple: int) -> Iterator[slice]:
    """Runs of rows of about `CHUNK` weights, each beginning at a multiple of `multiple`."""
    step = max(1, CHUNK // max(1, cols) // multiple) * multiple
    return (slice(first, min(rows, first + step)) for first in range(0, rows, step))


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

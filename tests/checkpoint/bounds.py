"""The bounds within which bad input has to be answered."""

from __future__ import annotations

import contextlib
import signal
import tracemalloc
from collections.abc import Iterator


@contextlib.contextmanager
def within_seconds(most: float) -> Iterator[None]:
    """Stop the block after `most` seconds of this process's own computing: a busy machine does not count."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer within {most} seconds of computing")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def within_bytes(most: int) -> Iterator[None]:
    """Fail when the block's objects took more than `most` bytes at any time."""
    tracemalloc.start(1)
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()

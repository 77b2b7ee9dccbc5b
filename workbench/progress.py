"""Long work is a generator: it yields `Progress`, returns its result, and keeps what it has when closed.

A caller in a cell uses `drain`, which shows a bar once two seconds have passed; a panel
hands the same generator to `panels.jobs`. So there is one implementation of every long
call, and cancelling it is `generator.close()` in both places.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """One step of a long call: `done` of `total` (0: unknown) in `unit`, and what is happening now."""

    done: float
    total: float
    unit: str
    message: str = ""

    @property
    def fraction(self) -> float | None:
        return min(1.0, self.done / self.total) if self.total > 0 else None


Steps = Generator[Progress, None, T]

LINGER = 0.5  # seconds that a cancel waits for a thread to stop
PATIENCE = 2.0  # seconds before a bar appears: shorter work needs none


def drain(steps: Steps[T], *, label: str = "") -> T:
    """Run `steps` to its end and return its result, with a bar for work of over two seconds.

    An interrupt (Ctrl-C, the notebook's stop button) closes the generator, which then
    writes what it has to the cache, and passes on.
    """
    bar = None
    began = time.monotonic()
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            if time.monotonic() - began > PATIENCE:
                bar = _shown(step, bar, label)
    finally:
        if bar is not None:
            bar.close()
        steps.close()


def _shown(step: Progress, bar: Any, label: str) -> Any:
    """The bar, brought to `step`: a new one for each phase of the work, since each has its own pace."""
    from tqdm.auto import tqdm

    if bar is not None and (bar.unit, bar.total) != (step.unit, step.total or None):
        bar.close()
        bar = None
    if bar is None:
        bar = tqdm(
            total=step.total or None,
            initial=step.done,
            unit=step.unit,
            unit_scale=True,
            desc=label or None,
            leave=False,
            mininterval=0.2,
        )
    bar.set_postfix_str(step.message, refresh=False)
    bar.update(step.done - bar.n)
    return bar


class Cancelled(BaseException):
    """Raised inside the work of `in_thread` when nobody waits for it any more.

    Not an `Exception`, so that a library's own `except Exception` does not swallow it.
    """


def in_thread(work: Callable[[Callable[[Progress], None]], T]) -> Steps[T]:
    """Turn work that can only call back, such as a model's forward pass, into steps.

    `work` is called in a thread of its own with a function `report`. Calling it hands a
    `Progress` to whoever runs the steps, and raises `Cancelled` once they are closed: a
    long call that reports a few times a second can be cancelled within a second.
    """
    reports: SimpleQueue[Progress] = SimpleQueue()
    closed, ended = threading.Event(), threading.Event()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def report(step: Progress) -> None:
        if closed.is_set():
            raise Cancelled
        reports.put(step)

    def body() -> None:
        try:
            outcome.append(work(report))
        except Cancelled:
            pass
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        last = Progress(0, 0, "", "")
        while not ended.is_set():
            with contextlib.suppress(Empty):  # then the same step again: a chance for the caller to cancel
                last = reports.get(timeout=0.1)
            yield last
    finally:
        closed.set()
        thread.join(LINGER)  # no longer: inside a library's import, say, nothing stops it before its next report
    if failure:
        raise failure[0]
    return outcome[0]

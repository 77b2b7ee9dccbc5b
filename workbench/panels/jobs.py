"""Runs one long call at a time for the panels: progress, cancel, and an error that is seen.

A panel hands over the `_steps` form of a call (see `workbench.progress`). Where the front
end takes messages from any thread (JupyterLab, VS Code, classic) it runs in a thread, so
the panels stay alive; elsewhere (Colab) it runs in the callback itself, and cancelling is
interrupting the kernel. Callbacks may come in any thread: everything that changes is
changed under one lock, which the session shares.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from traitlets import HasTraits, Instance

from workbench.exceptions import WorkbenchError
from workbench.progress import Progress, Steps

T = TypeVar("T")
State = Literal["idle", "running", "cancelling", "done", "cancelled", "failed"]

LEAVE = 0.7  # seconds that a cancel waits for the running step
REPORT = 0.1  # seconds between two reports to the front end: more are not seen, and cost time


@dataclass(frozen=True)
class Status:
    """What the job runner is doing, as shown: replaced as a whole, so that a view never sees half a change.

    Attributes:
        name: the job in plain words, "Measuring errors".
        owner: who started it; its error is shown there.
        seconds: since the start. left: seconds until the end, if that can be told.
    """

    state: State = "idle"
    name: str = ""
    owner: object = None
    progress: Progress | None = None
    seconds: float = 0.0
    left: float | None = None
    error: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self.state in ("running", "cancelling")


class Jobs(HasTraits):
    """The job runner of a session; observe `status`."""

    status = Instance(Status, args=())

    def __init__(self, threaded: bool | None = None) -> None:
        super().__init__()
        self.threaded = threads_reach_the_front_end() if threaded is None else threaded
        self.lock = threading.RLock()
        self._run: _Run | None = None

    def start(
        self,
        name: str,
        steps: Steps[T],
        done: Callable[[T], Any],
        *,
        owner: object = None,
        stopped: Callable[[], Any] = lambda: None,
    ) -> None:
        """Run `steps` to its end and hand its result to `done`.

        `stopped` is called instead after a cancel or an error, to show what was kept. Both
        run while the job still counts as busy.

        Raises:
            WorkbenchError: another job is running.
        """
        with self.lock:
            if self.status.busy:
                steps.close()
                raise WorkbenchError(self.status.name, "still running", do="wait for its end, or cancel it first")
            run = self._run = _Run(steps, done, stopped)
            self.status = Status("running", name, owner)
        if not self.threaded:
            self._work(run)
            return
        threading.Thread(target=self._work, args=(run,), name="workbench job", daemon=True).start()
        threading.Thread(target=self._tick, args=(run,), name="workbench clock", daemon=True).start()

    def cancel(self) -> None:
        """Stop the running job; it keeps what it has. Nothing happens if none is running.

        It is over within a second: a step that nothing can interrupt, such as the first
        import of a large library, ends by itself later, and its result is dropped.
        """
        run = self._run
        if run is None:
            return
        run.cancelled.set()  # before the lock, which a redraw may hold for a moment
        with self.lock:
            if not run.over and self.status.state == "running":
                self.status = replace(self.status, state="cancelling", left=None)
                if self.threaded:
                    leave = threading.Timer(LEAVE, self._finish, (run, "cancelled", None, run.stopped))
                    leave.daemon = True
                    leave.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the running job; True if there is none any more."""
        return self._run is None or self._run.ended.wait(timeout)

    def _work(self, run: _Run) -> None:
        try:
            finished, result = self._drive(run)
        except KeyboardInterrupt:  # how a job in the main thread is cancelled
            self._finish(run, "cancelled", None, run.stopped)
        except BaseException as error:  # a thread's error goes nowhere, so it is kept to be shown
            self._finish(run, "failed", error, run.stopped)
        else:
            if finished:
                self._finish(run, "done", None, lambda: run.done(result))
            else:
                self._finish(run, "cancelled", None, run.stopped)

    def _drive(self, run: _Run) -> tuple[bool, Any]:
        """Whether the steps came to their end, and their result; a cancel closes them between two steps."""
        try:
            while not run.cancelled.is_set():
                try:
                    self._report(run, next(run.steps))
                except StopIteration as end:
                    return True, end.value
        finally:
            run.steps.close()
        return False, None

    def _finish(self, run: _Run, outcome: State, error: BaseException | None, last: Callable[[], Any]) -> None:
        """End a run once, whoever comes first: its own thread, or a cancel that did not wait for it."""
        with self.lock:
            if run.over:
                return
            run.over = True
        try:
            last()
        except Exception as reason:
            outcome, error = "failed", error or reason
        with self.lock:
            self.status = replace(self.status, state=outcome, error=error, seconds=run.clock.seconds, left=None)
        run.ended.set()

    def _report(self, run: _Run, step: Progress) -> None:
        if run.clock.due(step):
            with self.lock:
                if not run.over:
                    seconds, left = run.clock.seconds, run.clock.left(step)
                    self.status = replace(self.status, progress=step, seconds=seconds, left=left)

    def _tick(self, run: _Run) -> None:
        """Keep the seconds moving while a step takes long, so that a slow job does not look dead."""
        while not run.ended.wait(1.0):
            with self.lock:
                if not run.over:
                    self.status = replace(self.status, seconds=run.clock.seconds)


class _Run:
    """One job: its steps, what to do at its end, and whether that has come."""

    def __init__(self, steps: Steps[Any], done: Callable[[Any], Any], stopped: Callable[[], Any]) -> None:
        self.steps, self.done, self.stopped = steps, done, stopped
        self.clock = _Clock()
        self.cancelled, self.ended = threading.Event(), threading.Event()
        self.over = False  # its end has begun: nothing more is reported


class _Clock:
    """When a job began, when it last reported, and how long it will take at the pace seen so far."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._reported = float("-inf")
        self._phase: tuple[str, float] | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def due(self, step: Progress) -> bool:
        now = time.monotonic()
        if self._phase != (step.unit, step.total):  # a new phase has a pace of its own
            self._phase, self._since, self._from = (step.unit, step.total), now, step.fraction or 0.0
        elif now - self._reported < REPORT:
            return False
        self._reported = now
        return True

    def left(self, step: Progress) -> float | None:
        """Seconds to go at this phase's pace; None before two seconds of it, when that would be a guess."""
        spent, covered = time.monotonic() - self._since, (step.fraction or 0.0) - self._from
        if spent < 2 or covered <= 0:
            return None
        return spent / covered * (1 - (step.fraction or 0.0))


def threads_reach_the_front_end() -> bool:
    """Whether widgets that a thread changes are redrawn; Colab's are not until the cell or callback ends."""
    return "google.colab" not in sys.modules

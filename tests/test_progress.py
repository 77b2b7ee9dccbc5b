"""Long work as steps: results, cancelling, and failures that reach the caller."""

from __future__ import annotations

import threading

import pytest

from workbench.progress import Progress, drain, in_thread


def test_drain_returns_what_the_steps_return():
    def steps():
        yield Progress(1, 2, "file")
        return "done"

    assert drain(steps()) == "done"


def test_drain_closes_the_steps_when_the_user_interrupts():
    closed = []

    def steps():
        try:
            yield Progress(0, 1, "file")
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        drain(steps())
    assert closed


def test_work_in_a_thread_reports_and_returns():
    def work(report):
        report(Progress(1, 2, "layer", "first"))
        report(Progress(2, 2, "layer", "second"))
        return 42

    assert drain(in_thread(work)) == 42


def test_closing_the_steps_stops_the_work_at_its_next_report():
    begun, stopped = threading.Event(), threading.Event()

    def work(report):
        try:
            while True:
                report(Progress(0, 0, "token"))
                begun.set()
        finally:
            stopped.set()

    steps = in_thread(work)
    next(steps)
    assert begun.wait(5)
    steps.close()
    assert stopped.is_set()


def test_a_failure_inside_the_thread_reaches_the_caller():
    def work(report):
        raise ValueError("the layer is missing")

    with pytest.raises(ValueError, match="the layer is missing"):
        drain(in_thread(work))


@pytest.mark.parametrize(("done", "total", "fraction"), [(1, 4, 0.25), (9, 4, 1.0), (3, 0, None)])
def test_a_fraction_never_passes_one_and_is_unknown_without_a_total(done, total, fraction):
    assert Progress(done, total, "B").fraction == fraction

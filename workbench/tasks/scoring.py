"""Answers to scores: each reply by its example's check; what a check cannot do is noted for its example alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workbench.exceptions import WorkbenchError
from workbench.progress import Progress, Steps, in_thread
from workbench.tasks import checks, harness
from workbench.tasks.apart import Apart
from workbench.tasks.asking import Said
from workbench.tasks.task import Task
from workbench.tasks.understanding import OWN, Example

EVERY = 50  # examples between two reports where nothing is slow


@dataclass(frozen=True)
class Outcome:
    """One candidate on one example.

    Attributes:
        said: its reply, or why there is none.
        score: 0 to 1; not a number where it could not be had.
        error: why not.
    """

    said: Said
    score: float
    error: str = ""

    @cached_property
    def right(self) -> bool | None:
        """Whether the reply is right; None: not known."""
        return None if math.isnan(self.score) else self.score == 1

    @property
    def text(self) -> str:
        return self.said.reply.text if self.said.reply else ""


def outcomes_steps(task: Task, answers: Sequence[Said]) -> Steps[list[Outcome]]:
    """The answers of one candidate to a task, scored; yields the examples done."""
    if task.harness is not None:
        scores = yield from harness.scores_steps(task.harness, task.examples, answers)
        return [Outcome(said, score, said.error) for said, score in zip(answers, scores, strict=True)]
    slow = [one for one in task.examples if _is_apart(one)]
    if not slow:
        return [_scored(one, said, None) for one, said in zip(task.examples, answers, strict=True)]

    def work(report: Callable[[Progress], None]) -> list[Outcome]:
        made: list[Outcome] = []
        with Apart(task.function) as apart:
            for one, said in zip(task.examples, answers, strict=True):
                report(Progress(len(made), len(task.examples), "example", f"checking {task.name}"))
                apart.tick = lambda: report(Progress(len(made), len(task.examples), "example", "checking"))
                made.append(_scored(one, said, apart))
        return made

    return (yield from in_thread(work))


def _is_apart(example: Example) -> bool:
    return example.check == OWN or checks.CHECKS[example.check].apart


def _scored(example: Example, said: Said, apart: Apart | None) -> Outcome:
    if said.reply is None:
        return Outcome(said, math.nan, said.error)
    try:
        return Outcome(said, _score(example, said, apart))
    except Exception as error:  # a check of the user's, or a pattern of the file's
        text = error.found if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
        return Outcome(said, math.nan, f"its check failed: {text}"[:500])


def _score(example: Example, said: Said, apart: Apart | None) -> float:
    assert said.reply is not None
    text = said.reply.text
    if example.check == OWN:
        assert apart is not None
        return value_of(apart.function(text, example.row))
    check = checks.CHECKS[example.check]
    if check.likelihood:
        return float(max(range(len(said.likelihoods)), key=said.likelihoods.__getitem__) == example.wanted)
    if check.apart:
        assert apart is not None
        return value_of(apart.check(check.name, text, example.wanted))
    return check.score(text, example.wanted)


def value_of(found: Any) -> float:
    """What a check returned, as a score; raises ValueError for what is none."""
    if hasattr(found, "item"):  # a number of numpy's
        found = found.item()
    if isinstance(found, bool | int | float) and 0 <= found <= 1:
        return float(found)
    raise ValueError(f"it returned {found!r:.60}, where True, False or a number from 0 to 1 is needed")

"""The call that asks several models the same questions of the user's and holds their answers against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.progress import Steps, drain
from workbench.tasks.answering import answers_so_far, answers_steps, check_likelihoods
from workbench.tasks.asking import Said
from workbench.tasks.candidates import Candidates, Contender, contenders_steps
from workbench.tasks.reading import Source
from workbench.tasks.replies import divergences_steps
from workbench.tasks.result import Benchmark, Entry
from workbench.tasks.scoring import Outcome, outcomes_steps
from workbench.tasks.task import Task, renamed, task_steps

if TYPE_CHECKING:
    import torch


def benchmark(
    candidates: Candidates,
    task: Task | Source | Sequence[Task | str],
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    parallel: int | None = None,
    kl: bool = True,
    fresh: bool = False,
    seed: int = 0,
    anyway: bool = False,
) -> Benchmark:
    """Ask several models the same questions, score their replies, and say what the difference is and how sure that is.

        wb.benchmark([model, "Q8_0", "Q4_K_M"], "mine.jsonl")
        wb.benchmark([model, plan, wb.run("mixed.gguf", engine="llama.cpp"), "ollama"], wb.task("mine.csv", shots=3))

    Args:
        candidates: what is asked; the first is the reference that the others are held against. Each is a
            checkpoint or what `wb.load` takes; a plan, a recipe's or format's name, a format, or tensor name -> format:
            then the reference's weights as they are after that, run by decoded weights; a server, as
            `wb.run` takes it; or an engine that is open, which stays so. A dictionary gives them names.
        task: what `wb.task` gives or takes; or a list of several.
        importance: tensor name -> mean square of each input channel, for formats that use it.
        dtype, device: of the models that are opened here.
        parallel: questions that are answered at once: by a server (4), or in one batch of transformers (8, on a
            GPU 32); 1 asks one by one.
        kl: measure the KL divergence too, on the reference's own replies, for candidates that give logits. Both
            models are then in memory at once, in float32.
        fresh: ask again what was asked before.
        seed: of the intervals' resampling.
        anyway: go ahead even if a model does not fit in memory.

    One model is in memory at a time while questions are answered. Every answer is in the cache as soon as it
    is there, so an interrupted call goes on where it stopped, and a new candidate costs only its own answers.

    Raises:
        WorkbenchError: what `wb.task` and `wb.run` raise; a multiple choice put to an engine without likelihoods.
    """
    steps = benchmark_steps(
        candidates,
        task,
        importance=importance,
        dtype=dtype,
        device=device,
        parallel=parallel,
        kl=kl,
        fresh=fresh,
        seed=seed,
        anyway=anyway,
    )
    return drain(steps, label="benchmark")


def benchmark_steps(
    candidates: Candidates,
    task: Task | Source | Sequence[Task | str],
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    parallel: int | None = None,
    kl: bool = True,
    fresh: bool = False,
    seed: int = 0,
    anyway: bool = False,
) -> Steps[Benchmark]:
    """`benchmark`, yielding the answers so far; closing it stops within a second and keeps them."""
    tasks = yield from tasks_steps(task)
    asked = yield from contenders_steps(candidates, importance=importance, dtype=dtype, device=device, anyway=anyway)
    for contender in asked:
        check_likelihoods(contender, tasks)
    entries: list[Entry] = []
    notes = list(_notes(asked))
    first: list[list[Said]] = []
    for contender in asked:
        answers = yield from answers_steps(contender, tasks, parallel=parallel, fresh=fresh)
        first, outcomes = first or answers, list[tuple[Outcome, ...]]()
        for one, said in zip(tasks, answers, strict=True):
            outcomes.append(tuple((yield from outcomes_steps(one, said))))
        entries.append(Entry(contender.name, contender.nbytes, tuple(outcomes)))
    for place, contender in enumerate(asked):
        if kl and place:
            found, why = yield from divergences_steps(asked[0], contender, first)
            entries[place] = replace(entries[place], kl=tuple(found))
            notes += [f"{contender.name}: {why}"] if why else []
    return Benchmark(tuple(tasks), tuple(entries), seed=seed, notes=tuple(notes))


def benchmark_so_far(
    candidates: Candidates, task: Any, *, importance: Mapping[str, np.ndarray] | None = None, seed: int = 0
) -> Benchmark | None:
    """What earlier calls with the same arguments were answered; None if that is nothing.

    Examples that were not answered yet have no score, and KL is not measured.
    """
    tasks = drain(tasks_steps(task))
    asked = drain(contenders_steps(candidates, importance=importance))
    entries, answered = [], 0
    for contender in asked:
        answers = answers_so_far(contender, tasks)
        answered += sum(not said.error for each in answers for said in each)
        scored = [drain(outcomes_steps(one, said)) for one, said in zip(tasks, answers, strict=True)]
        entries.append(Entry(contender.name, contender.nbytes, tuple(map(tuple, scored))))
    total = len(asked) * sum(len(one) for one in tasks)
    said = f"{answered:,} of {total:,} answers are there: ask again to go on"
    return Benchmark(tuple(tasks), tuple(entries), seed, (*_notes(asked), said)) if answered else None


def tasks_steps(task: Any) -> Steps[list[Task]]:
    """One task or several, read."""
    several = isinstance(task, list | tuple) and task and not any(isinstance(each, Mapping) for each in task)
    made = []
    for each in task if several else [task]:
        made.append((yield from task_steps(each)))
    return renamed(made)


def _notes(asked: Sequence[Contender]) -> tuple[str, ...]:
    first = asked[0].side
    return tuple(first.checkpoint.notes) if first is not None else ()

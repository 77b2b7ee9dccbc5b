"""Candidates' answers: each is asked for once, kept, and found again by whoever asks the same.

An answer is in the cache as soon as it is there, under what decides it: the candidate's weights (or its
server and model), the conversation, and the settings. A question that fails is noted and not kept, so that it is asked
again next time; it ends nothing but itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from workbench import files
from workbench.engines import Engine, Reply, generate, template
from workbench.exceptions import WorkbenchError
from workbench.progress import Progress, Steps, in_thread
from workbench.tasks import asking, likelihood
from workbench.tasks.asking import Asking, Question, Said
from workbench.tasks.candidates import Contender
from workbench.tasks.task import Task


def questions(contender: Contender, tasks: Sequence[Task]) -> list[Question]:
    """All that a candidate is asked."""
    made = []
    code = files.code_version(generate, template, likelihood, asking)
    for place, task in enumerate(tasks):
        settings = vars(task.settings)
        for number, example in enumerate(task.examples):
            messages = task.messages(example)
            question = Question(place, number, example, messages, settings, "")
            asked = [example.choices, settings["system"]] if question.likelihood else settings
            made.append(replace(question, key=files.digest(contender.fingerprint, messages, asked, code)))
    return made


def known(asked: Sequence[Question]) -> dict[str, Said]:
    """What the cache has of these questions: key -> what was said."""
    found = files.cache("answers").get([question.key for question in asked])
    return {key: _read(value) for key, value in found.items()}


def _read(value: Any) -> Said:
    reply = value["reply"]
    if reply is not None:
        numbers = {name: math.nan if reply[name] is None else reply[name] for name in _RATES}
        reply = Reply(**{**reply, **numbers, "token_ids": tuple(reply["token_ids"]), "tokens": tuple(reply["tokens"])})
    return Said(reply, tuple(value["likelihoods"]), prompt=tuple(value["prompt"]))


_RATES = ("seconds_to_first", "tokens_per_second", "prompt_per_second")


def _keep(question: Question, said: Said) -> None:
    reply = asdict(said.reply) if said.reply else None
    if reply is not None:
        reply |= {name: None if math.isnan(reply[name]) else reply[name] for name in _RATES}
    files.cache("answers").put({question.key: {"reply": reply, "likelihoods": said.likelihoods, "prompt": said.prompt}})


def answers_steps(
    contender: Contender, tasks: Sequence[Task], *, parallel: int | None = None, fresh: bool = False
) -> Steps[list[list[Said]]]:
    """What a candidate says to every example of every task, yielding the answers so far.

    Its engine is opened only if something is not in the cache.

    Raises:
        WorkbenchError: the engine cannot be opened, or gives no likelihoods where a task asks for them.
    """
    asked = questions(contender, tasks)
    said = {} if fresh else known(asked)
    missing = list({question.key: question for question in asked if question.key not in said}.values())
    if missing:
        engine = yield from contender.open_steps()
        try:
            yield from _asked_steps(engine, missing, said, len(asked), contender.name, parallel)
        finally:
            contender.close(engine)
    return _by_task(tasks, asked, said)


def answers_so_far(contender: Contender, tasks: Sequence[Task]) -> list[list[Said]]:
    """What the cache has of a candidate's answers; the others are not asked yet."""
    asked = questions(contender, tasks)
    said = known(asked)
    return _by_task(tasks, asked, {one.key: said.get(one.key, Said(error="it was not asked yet")) for one in asked})


def _by_task(tasks: Sequence[Task], asked: Sequence[Question], said: Mapping[str, Said]) -> list[list[Said]]:
    table: list[list[Said]] = [[] for _ in tasks]
    for question in asked:
        table[question.task].append(said[question.key])
    return table


def check_likelihoods(contender: Contender, tasks: Sequence[Task]) -> None:
    """Raise WorkbenchError for a multiple choice that is put to an engine without log-likelihoods."""
    if contender.likelihoods:
        return
    first = next((one for task in tasks for one in task.examples if one.likelihood), None)
    if first is not None:
        raise WorkbenchError(
            f"{first.where}, field 'choices'",
            f"choices are compared by log-likelihood, which {contender.name} does not give",
            do='ask for the letter instead, wb.task(..., check="letter"), or leave that candidate out',
        )


def _asked_steps(
    engine: Engine, missing: list[Question], said: dict[str, Said], total: int, name: str, parallel: int | None
) -> Steps[None]:
    """Put the answers into `said`, and into the cache as they come."""
    done, keys = total - len(missing), {question.key for question in missing}
    asking = Asking(engine, parallel)

    def so_far() -> Progress:
        return Progress(done + len(keys & said.keys()), total, "answer", name)

    def work(report: Callable[[Progress], None]) -> None:
        for question, answer in asking.answers(missing, lambda: report(so_far())):
            said[question.key] = answer
            if not answer.error:
                _keep(question, answer)

    steps = in_thread(work)
    try:
        yield from steps
    finally:
        asking.stop()  # first, so that the thread need not wait for the end of a reply
        steps.close()

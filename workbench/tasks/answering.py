"""Candidates' answers: each is asked for once, kept, and found again by whoever asks the same.

An answer is in the cache as soon as it is there, under what decides it: the candidate's weights (or its
server and model), the conversation, and the settings. A question that fails is noted and not kept, so that it is asked
again next time; it ends nothing but itself.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from workbench import files
from workbench.engines import Engine, Reply
from workbench.exceptions import WorkbenchError
from workbench.progress import Progress, Steps, in_thread
from workbench.tasks.candidates import Contender
from workbench.tasks.checks import CHECKS
from workbench.tasks.task import Task
from workbench.tasks.understanding import OWN, Example

POLL = 0.1  # seconds between two reports, each of which is a chance to cancel


@dataclass(frozen=True)
class Said:
    """What a candidate said to one example.

    Attributes:
        reply: its reply; None where there is none.
        likelihoods: for a multiple choice, log p of each choice as the reply, nats.
        error: why there is no reply.
    """

    reply: Reply | None = None
    likelihoods: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True, eq=False)
class Question:
    """One example as it is put to one candidate."""

    task: int
    number: int
    example: Example
    messages: list[dict[str, str]] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    key: str

    @property
    def likelihood(self) -> bool:
        return self.example.check != OWN and CHECKS[self.example.check].likelihood


def questions(contender: Contender, tasks: Sequence[Task]) -> list[Question]:
    """All that a candidate is asked."""
    made = []
    for place, task in enumerate(tasks):
        settings = vars(task.settings)
        for number, example in enumerate(task.examples):
            messages = task.messages(example)
            question = Question(place, number, example, messages, settings, "")
            asked = [example.choices, settings["system"]] if question.likelihood else settings
            made.append(replace(question, key=files.digest(contender.fingerprint, messages, asked)))
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
    return Said(reply, tuple(value["likelihoods"]))


_RATES = ("seconds_to_first", "tokens_per_second", "prompt_per_second")


def _keep(question: Question, said: Said) -> None:
    reply = asdict(said.reply) if said.reply else None
    if reply is not None:
        reply |= {name: None if math.isnan(reply[name]) else reply[name] for name in _RATES}
    files.cache("answers").put({question.key: {"reply": reply, "likelihoods": list(said.likelihoods)}})


def answers_steps(
    contender: Contender, tasks: Sequence[Task], *, parallel: int = 4, fresh: bool = False
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
            _check_likelihoods(engine, missing)
            yield from _asked_steps(engine, missing, said, len(asked), contender.name, parallel)
        finally:
            contender.close(engine)
    table: list[list[Said]] = [[] for _ in tasks]
    for question in asked:
        table[question.task].append(said[question.key])
    return table


def _check_likelihoods(engine: Engine, missing: Sequence[Question]) -> None:
    first = next((question for question in missing if question.likelihood), None)
    if first is not None and not engine.can.logits:
        raise WorkbenchError(
            f"{first.example.where}, field 'choices'",
            f"choices are compared by log-likelihood, which {engine.name} does not give ({engine.what})",
            do='ask for the letter instead, wb.task(..., check="letter"); other candidates\' answers are kept',
        )


def _asked_steps(
    engine: Engine, missing: list[Question], said: dict[str, Said], total: int, name: str, parallel: int
) -> Steps[None]:
    engines = [engine, *(another() for another in [getattr(engine, "another", None)] * (parallel - 1) if another)]
    done = total - len({question.key for question in missing})

    def so_far() -> Progress:
        return Progress(done + sum(question.key in said for question in missing), total, "answer", name)

    def work(report: Callable[[Progress], None]) -> None:
        for question, answer in _in_parallel(engines, missing, lambda: report(so_far())):
            said[question.key] = answer
            if not answer.error:
                _keep(question, answer)

    steps = in_thread(work)
    try:
        yield from steps
    finally:
        for each in engines:
            each.stop()  # first, so that the thread need not wait for the end of a reply
        steps.close()


def _in_parallel(
    engines: list[Engine], missing: list[Question], tick: Callable[[], None]
) -> Iterator[tuple[Question, Said]]:
    """Each question with its answer as it comes; every engine has one question at a time."""
    waiting, running = list(reversed(missing)), dict[Future[Said], tuple[Question, Engine]]()
    ended = threading.Event()
    pool = ThreadPoolExecutor(len(engines), thread_name_prefix="workbench answer")
    try:
        free = list(engines)
        while waiting or running:
            while waiting and free:
                question, engine = waiting.pop(), free.pop()
                running[pool.submit(_said, engine, question, ended)] = (question, engine)
            finished, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in finished:
                question, engine = running.pop(future)
                free.append(engine)
                yield question, future.result()
            tick()
    finally:
        ended.set()
        for _, engine in running.values():
            engine.stop()
        pool.shutdown(wait=False, cancel_futures=True)


def _said(engine: Engine, question: Question, ended: threading.Event) -> Said:
    """One question; what goes wrong with it is part of the answer."""
    if ended.is_set():
        return Said(error="it was stopped")
    began = time.perf_counter()
    try:
        if question.likelihood:
            from workbench.tasks.likelihood import chosen

            return chosen(engine, question, began)
        reply = engine(question.messages, **question.settings)
    except Exception as error:  # of an engine, a server or a template: this example's, and nobody else's
        return Said(error=_short(error))
    if reply.finish == "stopped":
        return Said(error="it was stopped")
    return Said(reply)


def _short(error: Exception) -> str:
    if isinstance(error, WorkbenchError):
        return f"{error.item}: {error.found}"[:500]
    return f"{type(error).__name__}: {error}"[:500]

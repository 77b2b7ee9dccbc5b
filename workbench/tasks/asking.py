"""How an engine is asked many questions: one by one, in batches, or over several connections at once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from workbench import fit
from workbench.engines import Engine, Reply, Settings
from workbench.engines.answering import Stopped
from workbench.engines.base import messages_of
from workbench.engines.server import ServerEngine
from workbench.engines.transformers import TransformersEngine
from workbench.exceptions import WorkbenchError
from workbench.tasks.likelihood import Likelihoods
from workbench.tasks.understanding import Example

POLL = 0.1  # seconds between two chances to cancel
CONNECTIONS = 4  # questions that a server has at once
BATCH, BATCH_ON_GPU = 8, 32  # replies that transformers makes at once


@dataclass(frozen=True)
class Said:
    """What a candidate said to one example.

    Attributes:
        reply: its reply; None where there is none.
        likelihoods: for a multiple choice, log p of each choice as the reply, nats.
        error: why there is no reply.
        prompt: the tokens of the question, where they are known.
    """

    reply: Reply | None = None
    likelihoods: tuple[float, ...] = ()
    error: str = ""
    prompt: tuple[int, ...] = field(default=(), repr=False)


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
    def length(self) -> int:
        """Characters of the conversation."""
        return sum(len(message["content"]) for message in self.messages)

    @property
    def messages_with_system(self) -> list[dict[str, str]]:
        """The conversation as `Engine` itself would pass it on."""
        return messages_of(self.messages, self.settings["system"])

    @property
    def likelihood(self) -> bool:
        return self.example.likelihood


@dataclass(frozen=True)
class Asker:
    """One who asks: `ask` a lot of at most `size` questions, and be stopped from another thread."""

    ask: Callable[[list[Question]], list[Said]]
    stop: Callable[[], None]
    size: int = 1


class Asking:
    """An engine that is asked many questions.

    Args:
        parallel: how many at once: connections to a server, replies in a batch of transformers; None: what is
            usual. llama.cpp is asked one by one.
    """

    def __init__(self, engine: Engine, parallel: int | None = None) -> None:
        self._ended = threading.Event()
        self._likelihoods: Likelihoods | None = None
        engines: list[Engine] = [engine]
        if isinstance(engine, ServerEngine):
            engines += [engine.another() for _ in range((parallel or CONNECTIONS) - 1)]
        size = _batch(engine) if parallel is None else parallel
        self._askers = [
            Asker(self._batched(each), each.stop, size)
            if isinstance(each, TransformersEngine) and size > 1
            else Asker(self._single(each), each.stop)
            for each in engines
        ]

    def stop(self) -> None:
        """End what is being answered, within a second, from any thread."""
        self._ended.set()
        for asker in self._askers:
            asker.stop()

    def answers(self, questions: Sequence[Question], tick: Callable[[], None]) -> Iterator[tuple[Question, Said]]:
        """Each question with its answer as they come; `tick` is called ten times a second, and may raise."""
        waiting, running = (
            _lots(questions, self._askers[0].size),
            dict[Future[list[Said]], tuple[list[Question], Asker]](),
        )
        pool = ThreadPoolExecutor(len(self._askers), thread_name_prefix="workbench answer")
        try:
            free = list(self._askers)
            while waiting or running:
                while waiting and free:
                    lot, asker = waiting.pop(0), free.pop()
                    running[pool.submit(asker.ask, lot)] = (lot, asker)
                finished, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in finished:
                    lot, asker = running.pop(future)
                    free.append(asker)
                    yield from zip(lot, future.result(), strict=True)
                tick()
        finally:
            self.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            if self._likelihoods is not None:
                self._likelihoods.close()

    def _single(self, engine: Engine) -> Callable[[list[Question]], list[Said]]:
        return lambda lot: [self._one(engine, question) for question in lot]

    def _one(self, engine: Engine, question: Question) -> Said:
        """One question; what goes wrong with it is part of the answer."""
        if self._ended.is_set():
            return Said(error=STOPPED)
        began = time.perf_counter()
        try:
            if question.likelihood:
                return self._choice(engine, question, began)
            reply = engine(question.messages, **question.settings)
            if reply.finish == "stopped":
                return Said(error=STOPPED)
            if not isinstance(engine, TransformersEngine):
                return Said(reply)
            return Said(reply, prompt=tuple(engine.prompt(question.messages_with_system)[1]))
        except Stopped:
            return Said(error=STOPPED)
        except Exception as error:  # of an engine, a server or a template: this example's, and nobody else's
            return Said(error=_short(error))

    def _choice(self, engine: Engine, question: Question, began: float) -> Said:
        """The likeliest choice as the reply, and the log-likelihood of each."""
        if self._likelihoods is None:
            self._likelihoods = Likelihoods(engine, self._ended)
        scores, read, note = self._likelihoods.of(question.messages_with_system, question.example.choices)
        text = question.example.choices[max(range(len(scores)), key=scores.__getitem__)]
        reply = Reply(text, (), (text,), read, time.perf_counter() - began, math.nan, "stop", note)
        return Said(reply, tuple(scores))

    def _batched(self, engine: TransformersEngine) -> Callable[[list[Question]], list[Said]]:
        from workbench.engines import batch

        able = batch.batches(engine)

        def ask(lot: list[Question]) -> list[Said]:
            said: dict[str, Said] = {}
            prompts = {}
            for question in lot:
                if question.likelihood or not able or len(lot) == 1:
                    said[question.key] = self._one(engine, question)
                    continue
                try:
                    prompts[question.key] = engine.prompt(question.messages_with_system)
                except Exception as error:
                    said[question.key] = Said(error=_short(error))
            together = [question for question in lot if question.key in prompts]
            while together:
                tokens = max(len(prompts[one.key][1]) + one.settings["max_tokens"] for one in together)
                some = together[: batch.fitting(engine, tokens, len(together))]
                together = together[len(some) :]
                settings = [Settings(**one.settings) for one in some]
                try:
                    with fit.guarded(None, f"{len(some)} replies of {engine.name}", str(engine.device)):
                        made = batch.replies(engine, [prompts[one.key] for one in some], settings, self._ended)
                    said |= {
                        one.key: Said(reply, prompt=tuple(prompts[one.key][1]))
                        for one, reply in zip(some, made, strict=True)
                    }
                except Stopped:
                    said |= {one.key: Said(error=STOPPED) for one in some}
                except Exception:  # one of them may be at fault, or memory: then each alone
                    said |= {one.key: self._one(engine, one) for one in some}
            return [said[question.key] for question in lot]

        return ask


STOPPED = "it was stopped"


def _batch(engine: Engine) -> int:
    if not isinstance(engine, TransformersEngine):
        return 1
    return BATCH if engine.device.type == "cpu" else BATCH_ON_GPU


def _lots(questions: Sequence[Question], size: int) -> list[list[Question]]:
    """Questions that are asked together: of about the same length, so that little is padding."""
    if size == 1:
        return [[question] for question in questions]
    alike = sorted(questions, key=lambda one: (one.likelihood, one.settings["max_tokens"], one.length))
    return [alike[first : first + size] for first in range(0, len(alike), size)]


def _short(error: Exception) -> str:
    if isinstance(error, WorkbenchError):
        return f"{error.item}: {error.found}"[:500]
    return f"{type(error).__name__}: {error}"[:500]

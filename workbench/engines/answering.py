"""What engines share: one reply at a time, made piece by piece, stopped from any thread, counted however it ends."""

from __future__ import annotations

import math
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Self, TypeVar

import numpy as np

from workbench.engines.base import Can, Finish, Messages, Reply, Settings, messages_of
from workbench.exceptions import WorkbenchError


class Stopped(BaseException):
    """Ends a reply that nobody waits for any more; not an `Exception`, so nothing on the way swallows it."""


@dataclass
class Draft:
    """A reply in the making."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # to make each token, the one that ends the reply included
    prompt_tokens: int = 0
    prompt_per_second: float = math.nan
    count: int = 0  # tokens of the reply, where the engine tells it and `tokens` are other pieces
    finish: Finish = "stopped"
    note: str = ""
    ended: bool = False
    reply: Reply | None = None

    def end(self) -> None:
        later = self.seconds[1:]
        made = max(self.count - 1, 0) or len(later)
        left, tokens = len(self.text), []
        for token in self.tokens:  # a stop string, and what was held back for it, belong to no token
            tokens.append(token[:left])
            left -= len(tokens[-1])
        self.ended = True
        self.reply = Reply(
            text=self.text,
            token_ids=tuple(self.ids),
            tokens=tuple(tokens),
            prompt_tokens=self.prompt_tokens,
            seconds_to_first=self.seconds[0] if self.seconds else math.nan,
            tokens_per_second=made / sum(later) if sum(later) else math.nan,
            finish=self.finish,
            note=self.note,
            prompt_per_second=self.prompt_per_second,
        )


def check_known(ids: np.ndarray, known: int, name: str) -> None:
    """Raise WorkbenchError for a token that the model does not know."""
    strange = ids[(ids < 0) | (ids >= known)]
    if len(strange):
        raise WorkbenchError("ids", f"{name} knows no token {strange[0]}", allowed=f"0 to {known - 1:,}")


T = TypeVar("T")
LINGER = 0.5  # seconds that the end of a reply waits for the thread that makes it


class _End(Exception):
    """The work of a feed is done."""


def feed(
    work: Callable[[Callable[[T], bool]], None], stop: threading.Event, threads: list[threading.Thread]
) -> Iterator[tuple[T, float]]:
    """What `work` hands over in a thread of its own, each with the time (`perf_counter`) at which it came.

    Args:
        work: called with a function that takes one thing, and gives True when nobody wants another.
        stop: once it is set, `Stopped` is raised within a tenth of a second, whatever `work` is waiting for.
        threads: gets the thread, which may go on for a while; those that have ended are dropped.
    """
    things: SimpleQueue[tuple[T, float] | BaseException] = SimpleQueue()
    left = threading.Event()  # nobody reads any more

    def take(thing: T) -> bool:
        things.put((thing, time.perf_counter()))
        return stop.is_set() or left.is_set()

    def body() -> None:
        try:
            work(take)
            things.put(_End())
        except BaseException as error:
            things.put(error)

    thread = threading.Thread(target=body, daemon=True)
    threads[:] = [*(each for each in threads if each.is_alive()), thread]
    thread.start()
    try:
        while True:
            if stop.is_set():
                raise Stopped
            try:
                thing = things.get(timeout=0.1)
            except Empty:
                continue
            if isinstance(thing, _End):
                return
            if isinstance(thing, BaseException):
                raise thing
            yield thing
    finally:
        left.set()
        thread.join(LINGER)


Write = Callable[[list[dict[str, str]], Settings, Draft, threading.Event], Iterator[str]]


class Answer:
    """One reply as it is made: an iterator of text, with `reply` once it has ended.

    The pieces join to `reply.text`. May be iterated in one thread and stopped from another.
    """

    def __init__(self, write: Write, messages: list[dict[str, str]], settings: Settings) -> None:
        self._stop = threading.Event()
        self._turn = threading.Lock()  # held while a piece is made
        self._draft = Draft()
        # No reference back to this object: a stream that a loop has left is collected, and so ended, at once.
        self._pieces = _pieces(write, messages, settings, self._draft, self._stop)

    @property
    def reply(self) -> Reply | None:
        return self._draft.reply

    @property
    def ended(self) -> bool:
        return self._draft.ended

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._turn:
            return next(self._pieces)

    def stop(self) -> None:
        """Ask for the end and return at once; the thread that iterates comes to its end within a second."""
        self._stop.set()
        if self._turn.acquire(blocking=False):  # nobody is waiting for a piece, so nobody else will end it
            try:
                self._finish()
            finally:
                self._turn.release()

    def close(self) -> None:
        """End the reply and wait until the model has stopped."""
        self._stop.set()
        with self._turn:
            self._finish()

    def _finish(self) -> None:
        self._pieces.close()
        if not self._draft.ended:  # it never began
            self._draft.end()


def _pieces(
    write: Write, messages: list[dict[str, str]], settings: Settings, draft: Draft, stop: threading.Event
) -> Generator[str, None, None]:
    """The text of a reply as it is made; keeps the account in `draft`, however it ends."""
    try:
        for text in write(messages, settings, draft, stop):
            draft.text += text
            yield text
    except Stopped:
        pass
    finally:
        draft.end()


class Answering(ABC):
    """The part of an `engines.base.Engine` that does not depend on what runs the model."""

    can = Can()
    context: Any  # the most tokens of a text, int; None: it has no limit, or does not tell

    def __init__(self, name: str, what: str, memory_before: int, memory_after: int) -> None:
        self.name, self.what = name, what
        self.memory_before, self.memory_after = memory_before, memory_after
        self.closed = False
        self._guard = threading.Lock()
        self._current: weakref.ref[Answer] | None = None

    @abstractmethod
    def _write(
        self, messages: list[dict[str, str]], settings: Settings, draft: Draft, stop: threading.Event
    ) -> Iterator[str]:
        """Make a reply: yield its text, keep account in `draft`, and end (or raise `Stopped`) once `stop` is set."""

    @abstractmethod
    def _free(self) -> None:
        """Let go of the model; called once, when nothing is being answered."""

    def __call__(self, prompt: str | Messages, **settings: Any) -> Reply:
        """Answer a text, or a list of {"role", "content"}; the settings are those of `Settings`."""
        stream = self.stream(prompt, **settings)
        for _ in stream:
            pass
        assert stream.reply is not None
        return stream.reply

    def stream(self, prompt: str | Messages, **settings: Any) -> Answer:
        """Answer piece by piece: iterate for the text, then see `.reply`. Closing it stops the model."""
        chosen = Settings.of(**settings)
        messages = messages_of(prompt, chosen.system)
        with self._guard:
            if self.closed:
                raise WorkbenchError(self.name, "this engine was closed", do="open it again with workbench.run(...)")
            current = self._current and self._current()
            if current and current.stopping:
                current.close()  # which another thread may still be leaving
            if current and not current.ended:
                raise WorkbenchError(self.name, "it is still answering", do="call stop(), or close the other stream")
            stream = Answer(self._write, messages, chosen)
            self._current = weakref.ref(stream)
        return stream

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The scores of every token of the vocabulary after each of a text's tokens: float32 [tokens, vocabulary].

        Args:
            ids: the numbers of the tokens, from the text's beginning.

        Raises:
            WorkbenchError: an engine that gives none (`can.logits`), one that was closed, no tokens, more than
                the context has room for, one that the model does not know.
        """
        if not self.can.logits:
            raise WorkbenchError(self.name, "it does not give the scores of the whole vocabulary")
        if self.closed:
            raise WorkbenchError(self.name, "this engine was closed", do="open it again with workbench.run(...)")
        found, most = np.asarray(ids), self.context
        if found.ndim != 1 or found.dtype.kind not in "iu" or not 0 < len(found) <= (most or len(found)):
            said = f"they are {found.dtype} {list(found.shape)}"
            raise WorkbenchError("ids", said, allowed=f"whole numbers of 1 to {most or 'any number of'} tokens")
        return self._scores(found.astype(np.int64))

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        """`logits` of int64 [tokens], where the engine can."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the reply in progress, from any thread, within a second; without one, do nothing."""
        current = self._current and self._current()
        if current:
            current.stop()

    def close(self) -> None:
        """Free the model's memory. The engine cannot be used again; closing twice does no harm."""
        current = self._current and self._current()
        if current:
            current.close()
        with self._guard:
            closed, self.closed = self.closed, True
        if not closed:
            self._free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def where(self) -> str:
        """What holds the model's memory."""
        return "cpu"

    def __repr__(self) -> str:
        grown = (self.memory_after - self.memory_before) / 1e6
        closed = " (closed)" if self.closed else ""
        return f"{self.name}{closed}: {self.what}; {grown:,.0f} MB on {self.where}"

"""Checks that may never return, or end the process they run in: run in a process of their own, with a deadline.

A user's function is sent there by cloudpickle, with what it refers to in its notebook. One that cannot be sent (it
holds an open model, say) runs in a thread here: a loop of Python is then ended by an exception inside it, and
what cannot be ended is left behind, so only its example is lost either way.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, Self

from workbench.exceptions import WorkbenchError

SECONDS = 10.0  # that one call may take
STARTING = 60.0  # that the process may take to start, and to import what a function needs
POLL = 0.1


class TooLong(BaseException):
    """Raised inside a function that did not return in time; no `Exception`, so that it does not catch it."""


class Apart:
    """A process that checks replies, started when it is first needed and again after it was lost.

    Attributes:
        tick: called ten times a second while a check runs; what it raises ends the wait.
    """

    def __init__(self, function: Callable[..., Any] | None = None, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.tick: Callable[[], None] = lambda: None
        self._function = function
        self._sent = _pickled(function)
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: SimpleQueue[bytes] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def function(self, reply: str, row: Mapping[str, Any]) -> Any:
        """What the user's function returns for a reply and its row.

        Raises:
            WorkbenchError: it raised, ended its process, or did not return in time.
        """
        function = self._function
        assert function is not None
        if self._sent is not None and self._started():
            return self._asked({"reply": reply, "row": _pickled(dict(row)) or _pickled(_texts(row))})
        return in_time(lambda: function(reply, dict(row)), self.seconds, self.tick)

    def check(self, name: str, reply: str, wanted: Any) -> Any:
        """The score of a check of `CHECKS`; raises as `function` does."""
        if not self._started():
            raise WorkbenchError("check", "Python did not start for it")
        return self._asked({"check": name, "reply": reply, "wanted": wanted})

    def _asked(self, question: dict[str, Any]) -> Any:
        try:
            answer = self._answer(question, self.seconds)
        except EOFError:
            raise WorkbenchError("check", "it ended the process that it ran in") from None
        if "error" in answer:
            raise WorkbenchError("check", str(answer["error"])[:300])
        return answer["score"]

    def _started(self) -> bool:
        """Whether there is a process that has the function; if it cannot be made there, it is not tried again."""
        if self._process is not None and self._process.poll() is None:
            return True
        command = [sys.executable, "-m", "workbench.tasks.checker"]
        folders = dict.fromkeys([str(Path(__file__).parents[2]), *(path or str(Path.cwd()) for path in sys.path)])
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        )
        assert self._process.stdout is not None
        self._lines = SimpleQueue()
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        try:
            ready = self._answer({"function": self._sent}, STARTING)
        except (EOFError, WorkbenchError):
            ready = {"error": "it did not start"}
        if "error" in ready:
            self._end()
            self._sent = None
        return "error" not in ready

    def _answer(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Write a line to the process and read one, within so many seconds; whatever goes wrong ends the process."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            try:
                self._process.stdin.write(json.dumps(question).encode() + b"\n")
                self._process.stdin.flush()
            except OSError:
                raise EOFError from None
            until = time.monotonic() + seconds
            while True:
                with contextlib.suppress(Empty):
                    line = self._lines.get(timeout=POLL)
                    if not line.endswith(b"\n"):
                        raise EOFError
                    return json.loads(line)
                self.tick()
                if time.monotonic() > until:
                    raise WorkbenchError("check", f"it had not returned after {seconds:g} s")
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


def _read(pipe: IO[bytes], lines: SimpleQueue[bytes]) -> None:
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(b"")


def _pickled(value: Any) -> str | None:
    """A value for the other process; None: it cannot be sent."""
    import cloudpickle

    try:
        return base64.b64encode(cloudpickle.dumps(value)).decode()
    except Exception:  # whatever its own __reduce__ raises
        return None


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in row.items()}


def in_time(call: Callable[[], Any], seconds: float, tick: Callable[[], None] = lambda: None) -> Any:
    """What `call` returns, in a thread of its own.

    Raises:
        WorkbenchError: it raised, or did not return in time. Then `TooLong` is raised inside it, which
            ends a loop of Python; a thread that waits in a library is left to itself.
    """
    outcome: list[tuple[Any, str]] = []

    def body() -> None:
        try:
            outcome.append((call(), ""))
        except TooLong:
            pass
        except BaseException as error:  # a function may also call exit()
            outcome.append((None, f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    until = time.monotonic() + seconds
    try:
        while thread.is_alive():
            thread.join(POLL)
            tick()
            if time.monotonic() > until and not outcome:
                raise WorkbenchError("check", f"it had not returned after {seconds:g} s")
    finally:
        if thread.is_alive() and not outcome:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TooLong))
    value, error = outcome[0]
    if error:
        raise WorkbenchError("check", error[:300])
    return value

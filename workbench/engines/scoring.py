"""llama.cpp's scores of the whole vocabulary, computed in a process of its own and handed over through a pipe.

A fault in llama.cpp then ends nothing else, and so does a cancel. The pipe has the scores of one
position after the other, as the reader takes them: neither side holds more than a batch of them.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import IO

import numpy as np

from workbench.engines import trial
from workbench.engines.options import Options, program
from workbench.exceptions import WorkbenchError

REQUEST = struct.Struct("<II")  # tokens that follow as int32; the first whose scores are wanted
WIDTH = struct.Struct("<I")  # what is said once, at the beginning: scores of a position
MOST_SAID = 1 << 16  # bytes
PATIENCE = 2.0  # seconds that a process has to end after its pipe has
PIPE = 1 << 20  # bytes that a pipe holds, where the system lets it


class Scorer:
    """A GGUF in llama.cpp that scores tokens; `close` ends it at any moment, also from another thread.

    Args:
        name: the model's, for messages.
        options: how it is run.
        context: the most tokens of a text.
    """

    def __init__(self, name: str, options: Options, context: int) -> None:
        self.name = name
        command, environment = program("workbench.engines.scoring", replace(options, context=context).json)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, close() closes it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # the notebook's stop button interrupts a whole session
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        _widen(self._out)
        self._width = 0

    @property
    def width(self) -> int:
        """Scores of a position, one for each token the model knows; waits until llama.cpp has opened the file."""
        if not self._width:
            raw = bytearray(WIDTH.size)
            self._read(memoryview(raw))
            (self._width,) = WIDTH.unpack(raw)
        return self._width

    def begin(self, tokens: np.ndarray, first: int) -> None:
        """Have a text read from its beginning: `tokens` [tokens]. Then `rows` gives the scores after tokens[first:]."""
        self._check_open()
        try:
            self._in.write(REQUEST.pack(len(tokens), first) + np.ascontiguousarray(tokens, "<i4").tobytes())
            self._in.flush()
        except OSError as error:
            raise self._ended() from error

    def rows(self, count: int) -> np.ndarray:
        """Scores of the next `count` positions, float32 [count, width]; waits for them."""
        found = np.empty((count, self.width), "<f4")
        self._read(found.data.cast("B"))
        return found

    def _read(self, room: memoryview) -> None:
        self._check_open()
        while room:
            try:
                count = self._out.readinto(room)  # type: ignore[attr-defined]
            except ValueError:  # closed from another thread
                count = 0
            if not count:
                raise self._ended()
            room = room[count:]

    def _check_open(self) -> None:
        if self._errors.closed:
            raise WorkbenchError(self.name, "this scorer was closed")

    def _ended(self) -> WorkbenchError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self.close()
        return WorkbenchError(
            self.name,
            f"llama.cpp does not score this file: {trial.reason(self._said) or self._status}",
            do="get the file again or convert it anew; a file of a newer kind may need a newer xllamacpp",
        )

    def close(self) -> None:
        """End the process; closing twice does no harm."""
        if self._errors.closed:
            return
        self._status = f"it ended with status {self._process.poll()}"
        self._process.kill()
        self._process.wait()
        self._said = _text(self._errors)
        for stream in (self._in, self._out, self._errors):
            with contextlib.suppress(OSError):  # what was still to be written has no reader
                stream.close()


def _widen(pipe: IO[bytes]) -> None:
    """Let the pipe hold more, so that the two processes change turns less often."""
    try:
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
    except (ImportError, AttributeError, OSError):  # another system, or one that is strict
        pass


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(MOST_SAID).decode("utf-8", "replace")


def _main(options: Options) -> None:
    """The process itself: scores what it is asked until the pipe ends."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no score
    from workbench.engines import llama_c

    with llama_c.opened(options) as model:
        _write(out, memoryview(WIDTH.pack(model.width)))
        while len(request := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
            count, first = REQUEST.unpack(request)
            tokens = np.frombuffer(sys.stdin.buffer.read(4 * count), "<i4")
            for scores in model.scores(tokens, first):
                _write(out, np.ascontiguousarray(scores, "<f4").data.cast("B"))
        os._exit(0)  # at once: whoever asked has gone


def _write(out: IO[bytes], raw: memoryview) -> None:
    while raw:
        raw = raw[out.write(raw) :]


if __name__ == "__main__":
    try:
        _main(Options.read(sys.argv[1]))
    except WorkbenchError as error:
        sys.exit(f"error: {error.found}")

"""Work as a process of its own, such as a download, which can be stopped at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from workbench.progress import Progress, Steps

ROOT = Path(__file__).parents[2]  # where this package lies
LONGEST_OUTPUT = 16 << 20  # bytes
_WAIT = 0.1  # seconds between looks at the process


class Failed(Exception):
    """The process ended badly; the text is the end of what it wrote to its error stream."""


def run_steps(
    command: Sequence[str],
    progress: Callable[[], Progress],
    *,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> Steps[str]:
    """Run `command` and return what it printed, yielding `progress()` ten times a second.

    Closing the generator kills the process. Raises `Failed` for an exit status other than
    0, or when `seconds` are over.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment)
        try:
            while process.poll() is None:
                if seconds is not None and time.monotonic() - started > seconds:
                    raise Failed(f"no answer within {seconds:g} seconds")
                yield progress()
                time.sleep(_WAIT)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if process.returncode:
            raise Failed(_text(errors)[-2000:].strip() or f"exit status {process.returncode}")
        return _text(out)


def module(name: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that run a module as this Python would find it."""
    places = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return [sys.executable, "-P", "-m", name, *arguments], {**os.environ, "PYTHONPATH": places}


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(LONGEST_OUTPUT).decode("utf-8", "replace")

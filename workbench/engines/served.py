"""A GGUF served to other programs of this machine: llama.cpp's OpenAI-compatible server in a process of its own.

    served = wb.serve("model.gguf", port=8080)   # prints how to use it
    served.url                                   # for any program that speaks to OpenAI
    served.close()

The process ends with the one that started it, however that ends: it reads a pipe that closes then.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from typing import IO, Any, Self

from workbench.checkpoint import Checkpoint, load_steps
from workbench.engines import trial
from workbench.engines.options import Options, ask, options_of, program, server_of
from workbench.exceptions import WorkbenchError, need
from workbench.progress import Progress, Steps, drain

HOST = "127.0.0.1"
PATIENCE = 5.0  # seconds that a server has to end by itself
SERVING = re.compile(r"^serving at (http://[\d.:]+)$", re.MULTILINE)
MOST_SAID = 1 << 16  # bytes
_RUNNING: set[Served] = set()  # so that one lives until it is closed, whether or not somebody keeps it


def serve(
    model: Checkpoint | str,
    port: int | None = None,
    *,
    context: int | None = None,
    kv: str | tuple[str, str] | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    anyway: bool = False,
) -> Served:
    """Start llama.cpp's OpenAI-compatible server on this machine alone, and print how to use it.

    It stops when it is closed, or when this kernel ends. It answers one request at a time and asks for no key.

    Args:
        model: a GGUF checkpoint, or what `wb.load` takes.
        port: of 127.0.0.1; None or 0 takes any that is free.
        context, kv, threads, gpu_layers, anyway: those of `wb.run`.

    Raises:
        WorkbenchError: a port that is taken, a file that llama.cpp does not run, an option it does not have.
    """
    steps = serve_steps(model, port, context=context, kv=kv, threads=threads, gpu_layers=gpu_layers, anyway=anyway)
    served = drain(steps, label="starting the server")
    print(served.usage)
    return served


def serve_steps(
    model: Checkpoint | str,
    port: int | None = None,
    *,
    context: int | None = None,
    kv: str | tuple[str, str] | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    anyway: bool = False,
) -> Steps[Served]:
    """`serve` without the print; closing it stops the server before it has begun."""
    need("xllamacpp")
    _check_port(port)
    checkpoint = model if isinstance(model, Checkpoint) else (yield from load_steps(model))
    options = options_of(checkpoint, context, kv, threads, gpu_layers)
    ask(checkpoint, options, f"serving {checkpoint.name}", anyway=anyway)
    served = Served(checkpoint.name, options, port or 0)
    try:
        while not served.ready():
            yield Progress(0, 0, "", f"opening {checkpoint.name}")
            time.sleep(0.1)
    except BaseException:
        served.close()
        raise
    return served


def _check_port(port: object) -> None:
    if port is None or port == 0:
        return
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise WorkbenchError("port", f"it is {port!r:.40}", allowed="a whole number from 1 to 65535, or None for any")
    with socket.socket() as trying:
        if sys.platform != "win32":  # there it would mean sharing the port
            trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trying.bind((HOST, port))
        except OSError as error:
            raise WorkbenchError(
                f"port {port}",
                f"it cannot be had on {HOST} ({error.strerror})",
                do="close the server that has it, take another port, or port=None for any that is free",
            ) from error


class Served:
    """A server that runs; made by `workbench.serve`.

    Attributes:
        name: of the model, as the server names it.
        url: its OpenAI-compatible address, ending in /v1.
    """

    def __init__(self, name: str, options: Options, port: int) -> None:
        self.name, self.url = name, ""
        command, environment = program("workbench.engines.served", options.json, name, str(port))
        self._out, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115, close() closes them
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # the notebook's stop button interrupts a whole session
        )
        _RUNNING.add(self)

    def ready(self) -> bool:
        """Whether it answers; raises WorkbenchError when it has ended instead."""
        ended = self._process.poll() is not None
        found = SERVING.search(_read(self._out))  # llama.cpp may print something of its own as it dies
        if ended:
            self.close()
            raise WorkbenchError(
                self.name,
                f"llama.cpp does not serve this file: {trial.reason(self._said)}",
                do="get the file again or convert it anew; a file of a newer kind may need a newer xllamacpp",
            )
        if found:
            self.url = f"{found[1]}/v1"
        return bool(found)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def usage(self) -> str:
        """How other programs use it, as commands."""
        name, question = json.dumps(self.name), '[{"role": "user", "content": "Hello"}]'
        return "\n".join(
            [
                f"{name} answers at {self.url} until .close(), or until this kernel ends; only on this machine.",
                f"curl {self.url}/chat/completions -d '{{\"messages\": {question}}}'",
                f'openai.OpenAI(base_url="{self.url}", api_key="none").chat.completions.create('
                f"model={name}, messages={question})",
            ]
        )

    def close(self) -> None:
        """Stop the server; closing twice does no harm."""
        _RUNNING.discard(self)
        if self._process.stdin is None or self._process.stdin.closed:
            return
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said = _read(self._errors)
        self._out.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{json.dumps(self.name)} {f'served at {self.url}' if self.running else 'no longer served'}>"


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(MOST_SAID).decode("utf-8", "replace")


def _main(options: str, name: str, port: str) -> None:
    """The server's own process: opens the model, says where, and waits for the pipe's end."""
    server: Any = server_of(Options.read(options), key="", port=int(port), name=name, own_template=True, verbosity=1)
    print(f"serving at {server.listening_address}", flush=True)
    sys.stdin.buffer.read()
    os._exit(0)  # at once: whoever asked has gone


if __name__ == "__main__":
    _main(*sys.argv[1:])

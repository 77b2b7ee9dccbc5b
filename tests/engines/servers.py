"""Small servers that misbehave, each in a thread of its own on a port of this machine."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Asked"], None]
MODELS = {"object": "list", "data": [{"id": "tiny", "object": "model"}]}


class Asked(BaseHTTPRequestHandler):
    """One request; `seen` of its server has them all."""

    server: Any

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append(self)
        with contextlib.suppress(OSError):  # the other side has gone
            self.server.answers.get(self.path, nothing)(self)
        self.close_connection = True

    def begin(self, code: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"content-type": kind, "connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def write(self, text: str | bytes) -> None:
        self.wfile.write(text.encode() if isinstance(text, str) else text)
        self.wfile.flush()

    def event(self, thing: object) -> None:
        self.write(f"data: {json.dumps(thing)}\n\n")

    def piece(self, text: str | None, finish: str | None = None) -> None:
        self.event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})

    def log_message(self, *_: object) -> None:
        pass


def nothing(asked: Asked) -> None:
    """404, as of a path that is not there."""
    asked.begin(404, "application/json")
    asked.write('{"error": {"message": "no such path"}}')


def says(thing: object, code: int = 200, **headers: str) -> Reply:
    """The answer that is `thing` as JSON."""

    def answer(asked: Asked) -> None:
        asked.begin(code, "application/json", **headers)
        asked.write(json.dumps(thing))

    return answer


@contextlib.contextmanager
def running(**answers: Reply) -> Iterator[Any]:
    """A server of those answers: `chat` and `models` of OpenAI's protocol, or by path; `.url` and `.seen` of it."""
    known = {"chat": "/v1/chat/completions", "models": "/v1/models"}
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    server.daemon_threads = True
    server.answers = {"/v1/models": says(MODELS)} | {known.get(name, name): reply for name, reply in answers.items()}
    server.seen, server.over = [], threading.Event()
    server.root = f"http://127.0.0.1:{server.server_address[1]}"
    server.url = f"{server.root}/v1"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()

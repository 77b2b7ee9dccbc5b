"""A small server on 127.0.0.1 that answers as the hub does, for models that lie in folders.

The hub cannot exist here, so this poses as one through HF_ENDPOINT; the client is the real
`huggingface_hub`, in the process that the product starts for it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "org/gated"


class FakeHub(ThreadingHTTPServer):
    """Serves `folder`/org/name as the model org/name at the revisions main, v1 and COMMIT, and notes what is asked."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.sent = 0  # bytes of files
        self.seconds_a_block = 0.0  # delay for each 64 KiB of a file
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloaded(self) -> set[str]:
        """The files whose content was asked for."""
        found = (line.partition("/resolve/") for line in self.asked if line.startswith("GET "))
        return {rest.partition("/")[2] for _, there, rest in found if there}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.server.asked.append(f"{self.command} {path}")
        if path.startswith("api/models/"):
            self._describe(path.removeprefix("api/models/"), body)
            return
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        file = self.server.folder / repo / name
        if not file.is_file() or revision not in ("main", "v1", COMMIT):
            self._send(404, b"{}", body, {"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        asked = self.headers.get("Range")
        start, _, end = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(end or len(content)), len(content) - 1)
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206 if asked else 200, content[first : last + 1], body, headers)

    def _describe(self, rest: str, body: bool) -> None:
        what = "/tree/" if "/tree/" in rest else "/revision/"
        repo, _, asked = rest.partition(what)
        folder = self.server.folder / repo
        if repo == GATED:
            self._send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        elif not folder.is_dir():
            self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        elif (asked or "main") not in ("main", "v1", COMMIT):
            self._send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        else:
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            siblings = [{"rfilename": f.relative_to(folder).as_posix(), "size": f.stat().st_size} for f in files]
            described: object = {
                "id": repo,
                "modelId": repo,
                "sha": COMMIT,
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
            if what == "/tree/":
                described = [{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": ""} for s in siblings]
            self._send(200, json.dumps(described).encode(), body, {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        self.server.sent += len(content)
        for first in range(0, len(content), 1 << 16):
            try:
                self.wfile.write(content[first : first + (1 << 16)])
            except OSError:  # the client was stopped
                return
            time.sleep(self.server.seconds_a_block)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: `asked` has it."""

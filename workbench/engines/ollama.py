"""Ollama's own interface: which models it has, a new one from a GGUF file, one from its library, one less.

    wb.ollama.create("mine", "mixed.gguf")      # uploads the file, with template, stop words and context length
    wb.run("ollama", model="mine")              # it answers over the protocol that Ollama shares with others

https://github.com/ollama/ollama/blob/main/docs/api.md; over the same kind of connection as `engines.server`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from workbench.checkpoint import Checkpoint, load_steps
from workbench.engines.connection import Connection, connect
from workbench.engines.modelfile import CONTEXT, known
from workbench.engines.modelfile import modelfile as _modelfile
from workbench.engines.presets import PRESETS
from workbench.exceptions import WorkbenchError, need
from workbench.progress import Progress, Steps, drain, in_thread

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["create", "create_steps", "delete", "modelfile", "models", "pull", "pull_steps"]

URL = PRESETS["ollama"].url.removesuffix("/v1")
LARGEST = 64 << 20  # bytes of reports on one download or upload
PIECE = 1 << 20  # bytes read, hashed and sent at once
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}(/[A-Za-z0-9][\w.-]{0,79}){0,2}(:[A-Za-z0-9][\w.-]{0,79})?", re.ASCII)
COLUMNS = ("name", "nbytes", "parameters", "quantization", "family", "changed")
Report = Callable[[Progress], None]


def models(*, url: str = URL, silence: float | None = None) -> pd.DataFrame:
    """The models that Ollama has: name, nbytes, parameters, quantization, family and when it last changed.

    Args:
        url: where Ollama listens, without /v1.
        silence: seconds without a byte after which it is given up; by default 120.

    Raises:
        WorkbenchError: it does not answer, or answers something else.
    """
    import pandas as pd

    connection = _connected(url, silence)
    found = next(_reports(connection, "GET", "/api/tags"), {})
    listed = found.get("models")
    if not isinstance(listed, list):
        raise _rubbish(connection, "no list of models")
    rows = []
    for each in listed:
        if isinstance(each, dict) and isinstance(each.get("name"), str):
            more = each.get("details")
            more = more if isinstance(more, dict) else {}
            told = (each.get("size"), more.get("parameter_size"), more.get("quantization_level"), more.get("family"))
            rows.append((each["name"], *told, each.get("modified_at")))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def create(
    name: str,
    file: Checkpoint | str | Path,
    *,
    context: int = CONTEXT,
    url: str = URL,
    silence: float | None = None,
) -> str:
    """Give Ollama a GGUF file as a model, with its template, stop words and parameters; returns the model's name.

    What is sent beside the file is what `modelfile` says. Where Ollama runs on this machine it keeps a copy of its
    own, so the disk needs room for the file once more. A model of that name is replaced.

    Args:
        name: the new model's, such as "mine" or "mine:4bit".
        file: a GGUF, such as `wb.export` writes.
        context: tokens that Ollama starts it with.
        url, silence: those of `models`.

    Raises:
        WorkbenchError: a name that Ollama does not take, a file that is none, or what Ollama refuses.
    """
    return drain(create_steps(name, file, context=context, url=url, silence=silence), label=f"giving Ollama {name}")


def create_steps(
    name: str,
    file: Checkpoint | str | Path,
    *,
    context: int = CONTEXT,
    url: str = URL,
    silence: float | None = None,
) -> Steps[str]:
    """`create`, yielding the bytes hashed and then sent; closing it leaves Ollama without the model."""
    connection = _connected(url, silence)
    _check(name)
    model = file if isinstance(file, Checkpoint) else (yield from load_steps(file))
    parts = {info.file for info in model.tensors.values()} | {model.path}
    if model.kind != "gguf" or len(parts) > 1:
        what = "it is a folder of safetensors" if model.kind != "gguf" else "it is in several files"
        raise WorkbenchError(model.path, what, allowed="one GGUF file", do="write one with wb.export")
    said = known(model, context)
    request: dict[str, Any] = {"model": name, "parameters": {**said.parameters, "stop": list(said.stop)}}
    request |= {key: text for key, text in (("template", said.template), ("system", said.system)) if text}

    def work(report: Report) -> None:
        digest = _digest(model.path, report)
        _upload(connection, model.path, digest, report)
        request["files"] = {f"{name_for(model.path)}.gguf": digest}
        _follow(connection, "/api/create", request, report)

    yield from in_thread(work)
    return name


def pull(name: str, *, url: str = URL, silence: float | None = None) -> str:
    """Have Ollama download a model of its library; returns its name. Interrupted, it goes on from there the next time.

    Raises:
        WorkbenchError: a name that is none, or that the library does not have.
    """
    return drain(pull_steps(name, url=url, silence=silence), label=f"pulling {name}")


def pull_steps(name: str, *, url: str = URL, silence: float | None = None) -> Steps[str]:
    """`pull`, yielding the bytes of each part; closing it stops the download."""
    connection = _connected(url, silence)
    _check(name)
    yield from in_thread(lambda report: _follow(connection, "/api/pull", {"model": name}, report))
    return name


def delete(name: str, *, url: str = URL, silence: float | None = None) -> None:
    """Remove a model and its data from Ollama.

    Raises:
        WorkbenchError: it has no such model.
    """
    connection = _connected(url, silence)
    _check(name)
    for _ in _reports(connection, "DELETE", "/api/delete", {"model": name}):
        pass


def modelfile(file: Checkpoint | str | Path, *, context: int = CONTEXT) -> str:
    """The Modelfile for a GGUF file, as text: written beside it, `ollama create NAME -f Modelfile` takes both.

    Args:
        file: a GGUF, such as `wb.export` writes.
        context: tokens that Ollama starts it with, at most what the model was made for.
    """
    model = file if isinstance(file, Checkpoint) else drain(load_steps(file))
    return _modelfile(model, model.path, context=context)


# --- what goes over the wire --------------------------------------------------------------------


def _connected(url: str, silence: float | None) -> Connection:
    return connect(url.rstrip("/").removesuffix("/v1"), "Ollama", silence=silence, start=PRESETS["ollama"].start)


def _check(name: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        allowed = "letters, digits, - _ . and one : before a tag, such as mine:4bit"
        raise WorkbenchError("the model's name", f"it is {name!r:.100}", allowed=allowed)


def name_for(file: Path) -> str:
    """A name that Ollama takes, from a file's."""
    name = re.sub(r"[^\w.-]", "-", file.stem, flags=re.ASCII).strip("-._")[:80]
    return name or "model"


def _digest(path: Path, report: Report) -> str:
    total, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            total.update(piece)
            done += len(piece)
            report(Progress(done, size, "B", "hashing the file"))
    return f"sha256:{total.hexdigest()}"


def _upload(connection: Connection, path: Path, digest: str, report: Report) -> None:
    """Send the file unless Ollama has it already."""
    size = path.stat().st_size

    def pieces() -> Iterator[bytes]:
        done = 0
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
                done += len(piece)
                report(Progress(done, size, "B", "sending the file to Ollama"))

    place = f"/api/blobs/{quote(digest, safe=':')}"
    with _client(connection) as client, connection.told():
        there = client.head(connection.url + place).status_code
        if there == 200:
            return
        if there != 404:
            raise _rubbish(connection, f"{there} where it should say whether it has the file")
        answer = client.post(connection.url + place, content=pieces(), headers={"content-length": str(size)})
        if answer.status_code not in (200, 201):
            raise _refused(connection, answer.status_code, answer.text, answer.headers)


def _follow(connection: Connection, path: str, request: dict[str, Any], report: Report) -> None:
    """Report what Ollama says of a long call until it says that it has succeeded."""
    status = ""
    for said in _reports(connection, "POST", path, {**request, "stream": True}):
        status = str(said.get("status", ""))[:200]
        done, total = (value if isinstance(value, int) else 0 for value in map(said.get, ("completed", "total")))
        report(Progress(done, total, "B", status))
    if status != "success":
        raise WorkbenchError(connection.url, f"Ollama broke off ({status or 'it said nothing'})", do="try it again")


def _reports(connection: Connection, method: str, path: str, request: Any = None) -> Iterator[dict[str, Any]]:
    """The JSON objects of an answer, one a line; an error in it is raised."""
    with (
        _client(connection) as client,
        connection.told(),
        client.stream(method, connection.url + path, json=request) as answer,
    ):
        if answer.status_code != 200:
            answer.read()
            raise _refused(connection, answer.status_code, answer.text, answer.headers)
        for line in answer.iter_lines():
            if not line.strip():
                continue
            try:
                said = json.loads(line)
            except (ValueError, RecursionError):
                raise _rubbish(connection, "no JSON") from None
            if not isinstance(said, dict):
                raise _rubbish(connection, "no object")
            if "error" in said:
                raise _refused(connection, 200, line)
            yield said


def _client(connection: Connection) -> Any:
    need("openai")
    return connection.http(LARGEST)


def _refused(connection: Connection, code: int, text: str, headers: Any = None) -> WorkbenchError:
    """What Ollama said of a request that it does not carry out."""
    try:
        said = json.loads(text)["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        said = text
    return connection.answered(code, str(said) or "nothing", headers or {})


def _rubbish(connection: Connection, what: str) -> WorkbenchError:
    do = "check the url: of Ollama itself, without /v1"
    return WorkbenchError(connection.url, f"what answers there is no Ollama ({what})", do=do)

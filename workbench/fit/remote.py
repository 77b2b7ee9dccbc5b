"""A hub model's outline: its config and the headers of its files, by range requests; nothing is downloaded."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from workbench import files
from workbench.checkpoint import bounded_json, child, gguf, hub, opening, safetensors
from workbench.checkpoint.checkpoint import is_extra, ordered
from workbench.checkpoint.convert import config_of
from workbench.checkpoint.packed.joining import joined
from workbench.checkpoint.tensors import Header, TensorInfo
from workbench.exceptions import WorkbenchError
from workbench.fit.outline import Outline
from workbench.progress import Progress, Steps

FIRST = {".safetensors": 256 << 10, ".gguf": 8 << 20}  # bytes asked for at first, enough for most headers
MOST = 64 << 20  # bytes of any header
PATIENCE = 120.0  # seconds for all headers

# Fetches the beginnings of files in a process of its own, which can be stopped at any moment.
_CHILD = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from huggingface_hub import HfFileSystem
asked = json.loads(sys.argv[1])
hub = HfFileSystem()
def fetch(part):
    path = asked["repo"] + "@" + asked["commit"] + "/" + part["name"]
    with hub.open(path, "rb", cache_type="none") as file:  # the others read ahead
        Path(part["to"]).write_bytes(file.read(part["bytes"]))
with ThreadPoolExecutor(8) as pool:
    list(pool.map(fetch, asked["parts"]))
"""


def outline_steps(source: str, revision: str | None = None) -> Steps[Outline]:
    """The outline of the hub model `source` ("org/name", "org/name/file.gguf", either with "@revision").

    Raises:
        WorkbenchError: no network, no such model, several GGUF files to choose from, or a malformed header.
    """
    match = hub.ID.fullmatch(source)
    if match is None:
        raise WorkbenchError(source, "it is not a hub id", allowed=opening.KINDS)
    repo, file, revision = match["repo"], match["file"], revision or match["revision"]
    try:
        listing = yield from hub.list_steps(repo, revision, hub.PATIENCE)
    except hub.Unreachable as reason:
        raise WorkbenchError(
            repo,
            f"its headers cannot be read: the hub does not answer ({reason.found[-120:]})",
            do="check the connection, or give a folder, a .gguf file, or the model's config as a dict",
        ) from reason
    chosen = hub.choose(repo, listing.files, file)
    weights = [name for name in chosen if name.endswith((".safetensors", ".gguf"))]
    with tempfile.TemporaryDirectory() as folder:
        wanted = {name: min(listing.files[name], FIRST[Path(name).suffix]) for name in weights}
        if "config.json" in listing.files:
            wanted["config.json"] = min(listing.files["config.json"], bounded_json.LONGEST_DOCUMENT + 1)
        there = yield from _fetch_steps(repo, listing.commit, wanted, Path(folder))
        headers: dict[str, Header] = {}
        missing = dict.fromkeys(weights, 0)
        while missing:
            for name in missing:
                found = _parsed(name, there[name].read_bytes(), listing.files[name])
                if isinstance(found, Header):
                    headers[name] = found
                else:
                    missing[name] = found
            missing = {name: needed for name, needed in missing.items() if name not in headers}
            if missing:
                there |= yield from _fetch_steps(repo, listing.commit, missing, Path(folder))
        config = bounded_json.read(there["config.json"]) if "config.json" in there else {}
    return _outline(repo if file is None else f"{repo}/{file}", listing.commit, config, [headers[n] for n in weights])


def _parsed(name: str, beginning: bytes, size: int) -> Header | int:
    """The header at the beginning of a file of `size` bytes, or how many bytes it takes to hold it."""
    parse = gguf.parse_header if name.endswith(".gguf") else safetensors.parse_header
    try:
        return parse(Path(name), io.BytesIO(beginning), size)
    except WorkbenchError:
        if len(beginning) >= min(size, MOST):
            raise
        needed = 4 * len(beginning)
        if name.endswith(".safetensors"):
            needed = 8 + int.from_bytes(beginning[:8], "little")
            if needed <= len(beginning):
                raise  # the header was all there, and is malformed
        return min(size, MOST, needed)


def _fetch_steps(repo: str, commit: str, wanted: dict[str, int], folder: Path) -> Steps[dict[str, Path]]:
    """The first bytes of each file, as many as `wanted` says, in files of `folder`."""
    there = {name: folder / files.digest(name) for name in wanted}
    parts = [{"name": name, "bytes": count, "to": str(there[name])} for name, count in wanted.items()]

    def progress() -> Progress:
        return Progress(
            sum(file.exists() for file in there.values()), len(there), "header", f"reading {repo}'s headers"
        )

    command = [sys.executable, "-P", "-c", _CHILD, json.dumps({"repo": repo, "commit": commit, "parts": parts})]
    try:
        yield from child.run_steps(command, progress, seconds=PATIENCE)
    except child.Failed as reason:
        said = str(reason).strip().splitlines()[-1:] or ["no reason given"]
        raise WorkbenchError(repo, f"its headers cannot be read: {said[0][:200]}", do="try again") from reason
    return there


def _outline(name: str, commit: str, config: dict[str, Any], headers: list[Header]) -> Outline:
    tensors: list[TensorInfo] = [info for header in headers for info in header.tensors]
    with contextlib.suppress(WorkbenchError):  # what it cannot be read for is told when it is opened
        tensors = joined(Path(name), config, tensors, headers=True)
    extras = {info.name: info for info in tensors if is_extra(info.name)}
    of_gguf = any("general.architecture" in header.metadata for header in headers)
    return Outline(
        name=name,
        path=Path(name),
        kind="gguf" if of_gguf else "safetensors",
        config=config_of(headers[0].metadata, tensors) if of_gguf else config,
        metadata=headers[0].metadata if of_gguf else {},
        tensors=ordered([info for info in tensors if info.name not in extras]),
        extras=extras,
        revision=commit,
    )

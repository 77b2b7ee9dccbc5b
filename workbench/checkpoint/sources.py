"""Where a model comes from: a folder, a GGUF file, the hub, or the demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from workbench.checkpoint import demo, hub
from workbench.checkpoint.checkpoint import Checkpoint
from workbench.checkpoint.opening import KINDS, PICKLE, open_file, open_folder
from workbench.exceptions import WorkbenchError
from workbench.progress import Steps, drain


def load(source: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a model: its headers are read and checked, its weights stay on disk until they are asked for.

    Args:
        source: a folder (safetensors, one file or sharded), a `.gguf` file, a hub id with an
            optional revision ("org/name@revision"), or "demo" for a small model to try things on.
        revision: a branch, tag or commit on the hub.

    Raises:
        WorkbenchError: naming the file and the item that is missing, damaged or refused.
    """
    return drain(load_steps(source, revision), label=f"opening {source}")


def load_steps(source: str | Path, revision: str | None = None) -> Steps[Checkpoint]:
    """`load`, yielding the progress of a download; closing it stops the download, which later resumes."""
    opened = yield from _open_steps(source, revision)
    return replace(opened, source=f"{source}@{revision}" if revision else str(source))


def _open_steps(source: str | Path, revision: str | None) -> Steps[Checkpoint]:
    if source == "demo":
        return (yield from demo.load_steps())
    if not str(source):
        raise WorkbenchError("source", "it is empty", allowed=KINDS)
    path = Path(source).expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as reason:  # a name too long for the system, say
        raise WorkbenchError(f"{source!s:.200}", f"it cannot be opened ({reason.strerror})", allowed=KINDS) from reason
    if is_folder:
        return open_folder(path)
    hub_id = hub.ID.fullmatch(source) if isinstance(source, str) and not exists else None
    a_file = path.suffix in (".gguf", ".safetensors", *PICKLE)
    if exists or (a_file and not (hub_id and hub_id["file"])):  # org/name/file.gguf may be on the hub
        return open_file(path)
    if hub_id:
        return (yield from hub.load_steps(hub_id["repo"], revision or hub_id["revision"], file=hub_id["file"]))
    raise WorkbenchError(f"{source!s:.200}", "there is no such file or folder, and it is not a hub id", allowed=KINDS)

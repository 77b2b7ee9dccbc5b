"""What is asked before a file is touched: whether the plan can become a GGUF, and whether it may lie there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from workbench import figures, files
from workbench.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.planning import Plan
from workbench.writing import stored

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")  # any of them
ROOM = 16 << 20  # bytes that a disk should keep beside the file


def unwritable(plan: Plan) -> list[str]:
    """The plan's formats that a GGUF file cannot hold."""
    found = {format.name for format in plan.formats.values() if not _in_gguf(format)}
    return sorted(found)


def _in_gguf(format: Format) -> bool:
    return format.family == "ggml" or format.name in ("F32", "F16", "BF16")


def check_target(model: Checkpoint, target: Path) -> None:
    """Raise for a target that is a folder, or a file of the model itself, be it through a link."""
    if target.is_dir() or not target.name:
        raise WorkbenchError(target, "it is a folder", allowed="the path of a file, such as model-Q4_K_M.gguf")
    for file in {info.file for info in (*model.tensors.values(), *model.extras.values())}:
        if target.exists() and target.samefile(file):
            raise WorkbenchError(target, "it is a file of the model itself", do="give the new file another name")


def check_tokenizer(model: Checkpoint) -> None:
    """Raise unless the model has a tokenizer, of whatever kind."""
    found = "tokenizer.ggml.model" in model.metadata
    if model.kind != "gguf":
        found = any((model.path / name).is_file() for name in TOKENIZERS)
    if not found:
        raise WorkbenchError(
            model.path,
            "it has no tokenizer, and programs run no GGUF without",
            do="get the tokenizer's files from where the model is from; or anyway=True writes the weights alone",
        )


def check(plan: Plan, importance: Mapping[str, np.ndarray]) -> None:
    """Raise WorkbenchError for a plan that cannot become a GGUF: a format it has not, an importance that is missing."""
    for name, format in plan.formats.items():
        if not _in_gguf(format):
            raise WorkbenchError(name, f"GGUF files have no {format.name}", allowed="ggml's types, F32, F16, BF16")
        needed = format.importance == "required" and not stored.is_copied(plan.checkpoint.tensors[name], format)
        if needed and importance.get(name) is None:
            raise WorkbenchError(
                name, f"{format.name} cannot be made without an importance matrix", do="pass importance=..."
            )


def check_room(target: Path, nbytes: int) -> None:
    """Raise where the disk has not that many bytes, or nothing may be written."""
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = files.free_bytes(folder)
    if free < nbytes + ROOM:
        raise WorkbenchError(
            target,
            f"the file will have {figures.size(nbytes)}, and {folder} has {figures.size(free)} free",
            do="free some space, write elsewhere, or choose a smaller plan",
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as reason:
        found = f"{folder} cannot be written to ({reason.strerror})"
        raise WorkbenchError(target, found, do="choose another folder") from None

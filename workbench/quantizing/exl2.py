"""EXL2 by ExLlamaV2's own converter, a process of its own on an NVIDIA GPU; what it measured is kept if it is stopped.

The converter quantizes every matrix in many ways, keeps the error of each, and takes the mix that fits the mean bits
asked for; so bits of single layers are its own choice, and a plan is told to it as its mean.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workbench import files
from workbench.checkpoint import Checkpoint, bounded_json, child
from workbench.engines import exllamav2_library
from workbench.exceptions import WorkbenchError
from workbench.measure.text import Text, text_of
from workbench.planning import Plan, exl2_bits
from workbench.progress import Progress, Steps
from workbench.quantizing import folder

NAME = re.compile(r"EXL2-(\d+(?:\.\d+)?)(?:bpw)?(?:-h(\d+))?", re.IGNORECASE)
LEAST, MOST = 2.0, 8.0  # mean bits that its mixes reach
HEADS = (2, 3, 4, 5, 6, 8)  # bits of the head (its qparams_headoptions)
STAGES = {  # of its job file, in order
    "begin": "reading the text",
    "initial_embeddings": "embedding the text",
    "measure_quant": "measuring every matrix in many formats",
    "optimize": "choosing the mix",
    "tokens_cal": "reading the text again",
    "embeddings": "embedding it again",
    "quant": "quantizing",
    "compile": "writing the files",
    "finished": "done",
}
COLUMN = "text"


@dataclass(frozen=True)
class Exl2:
    """A scheme such as "EXL2-4.0bpw": mean bits of the layers' matrices, and bits of the head."""

    bits: float
    head: int = 6

    @property
    def name(self) -> str:
        return f"EXL2-{self.bits:g}bpw" + (f"-h{self.head}" if self.head != 6 else "")


def parsed(name: str) -> Exl2 | None:
    """The scheme of that name; None: it is none of EXL2.

    Raises:
        WorkbenchError: bits that the converter's mixes do not reach.
    """
    found = NAME.fullmatch(name)
    if found is None:
        return None
    bits, head = float(found[1]), int(found[2] or 6)
    if not LEAST <= bits <= MOST or head not in HEADS:
        raise WorkbenchError(
            name,
            f"it asks for {bits:g} bits, and {head} in the head",
            allowed=f"EXL2-Nbpw-hM with N from {LEAST:g} to {MOST:g}, M of {', '.join(map(str, HEADS))} (6 by default)",
        )
    return Exl2(bits, head)


def of_plan(plan: Plan) -> Exl2:
    """The scheme of a plan's mean bits: the converter takes no bits of single matrices from outside.

    Raises:
        WorkbenchError: a matrix that EXL2 cannot hold as planned (see `workbench.planning.exl2_bits`).
    """
    model, bits = plan.checkpoint, exl2_bits(plan)
    sizes = {
        model.hf_name(info.name).removesuffix(".weight"): info.params
        for info in model.matrices
        if info.layer is not None
    }
    mean = sum(bits[module] * size for module, size in sizes.items()) / sum(sizes.values())
    return Exl2(round(mean, 3))


def steps(model: Checkpoint, asked: Exl2, text: Text | None, target: Path) -> Steps[None]:
    """Fill the empty folder `target`; stopped, the same call goes on with what was measured.

    Args:
        text: what it measures errors on; None: the converter's own mixture of texts.

    Raises:
        WorkbenchError: what this machine lacks, before anything is touched; or the converter's last words.
    """
    exllamav2_library.check_here()
    written = text_of(text) if text is not None else ""
    key = files.digest(model.fingerprint, asked.name, written)
    work = files.cache_dir() / "exl2" / key
    work.mkdir(parents=True, exist_ok=True)
    with _source(model, target.parent) as source:
        yield from folder.write_steps(model, {}, folder.laid_out(model, {}), None, source)
        command = command_of(source, work, target, asked, _table(written, work))

        def progress() -> Progress:
            return _progress(work)

        try:
            yield from child.run_steps(command, progress)
        except child.Failed as reason:
            last = [line for line in str(reason).strip().splitlines() if line.strip()][-1:] or [""]
            raise WorkbenchError(
                model.name,
                f"ExLlamaV2's converter gave up: {last[0][:500]}",
                do="see whether it knows this architecture",
            ) from reason
    shutil.rmtree(work, ignore_errors=True)


def command_of(source: Path, work: Path, target: Path, asked: Exl2, table: Path | None) -> list[str]:
    """The converter's command; it goes on by itself with a `work` folder that holds a job."""
    command = [sys.executable, "-P", "-m", "exllamav2.conversion.convert_exl2"]
    command += ["--in_dir", str(source), "--out_dir", str(work), "--compile_full", str(target)]
    command += ["--bits", f"{asked.bits:g}", "--head_bits", str(asked.head)]
    return command + (["--cal_dataset", str(table)] if table else [])


@contextmanager
def _source(model: Checkpoint, beside: Path) -> Iterator[Path]:
    """A folder for the model in plain floats; the converter keeps its path, so it is the same after a stop."""
    place = beside / f".exl2-{model.fingerprint[:12]}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _table(text: str, work: Path) -> Path | None:
    """The text as the table that the converter reads: a row for each paragraph."""
    if not text:
        return None
    import pandas as pd

    place = work / "text.parquet"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            made = Path(scratch) / "text.parquet"
            rows = [part for part in text.split("\n\n") if part.strip()]
            pd.DataFrame({COLUMN: rows}).to_parquet(made, engine="fastparquet")  # which ExLlamaV2 brings
            made.rename(place)
    return place


def _progress(work: Path) -> Progress:
    """How far its job file says it is."""
    file = work / "job_new.json"
    try:
        stage = str(bounded_json.read(file).get("progress")) if file.is_file() else "begin"
    except (WorkbenchError, json.JSONDecodeError):  # it is writing it
        stage = "begin"
    names = list(STAGES)
    done = names.index(stage) if stage in names else 0
    return Progress(done, len(names) - 1, " stages", f"EXL2: {STAGES.get(stage, stage)[:60]}")

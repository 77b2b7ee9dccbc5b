"""EXL2 by ExLlamaV2's own converter, a process of its own on an NVIDIA GPU; what it measured is kept if it is stopped.

The converter quantizes every matrix in many ways, keeps the error of each, and takes the mix that fits the mean bits
asked for; so bits of single layers are its own choice, and a plan is told to it as its mean.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workbench import files
from workbench.checkpoint import Checkpoint, child
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
AT = {
    "measure_quant": "last_module_idx",
    "quant": "q_last_module_idx",
}  # its job file on the long ones, every 3 minutes
JOB, TABLE, COLUMN = "job_new.json", "text.parquet", "text"
LENGTH, SAMPLES, MEASURED = 2048, 100, 16  # tokens of a sample; how many it takes, and how many of them to measure on
SPARE = 0.98  # of our count of tokens: its tokenizer may find a few less


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
    sample = Sample.of(model, written) if written else None
    key = files.digest(model.fingerprint, asked.name, written)
    work = files.cache_dir() / "exl2" / key
    with _source(model, target.parent) as source:
        _take_up(work, source, target)
        yield from folder.plain_steps(model, source)
        command = command_of(source, work, target, asked, sample)
        if sample is not None:
            sample.write(work)

        try:
            said = yield from child.run_steps(command, Watch(work))
        except child.Failed as reason:
            raise _gave_up(model, str(reason)) from reason
        if not (target / "config.json").is_file():  # what it finds wrong ends it with the status of success
            raise _gave_up(model, said)
    shutil.rmtree(work, ignore_errors=True)


def _gave_up(model: Checkpoint, said: str) -> WorkbenchError:
    last = [line for line in said.strip().splitlines() if line.strip()][-1:] or ["it said nothing"]
    found = f"ExLlamaV2's converter gave up: {last[0].strip()[:500]}"
    return WorkbenchError(model.name, found, do="see whether it knows this architecture")


def _take_up(work: Path, source: Path, target: Path) -> None:
    """Ready `work` for the converter, which takes the paths of the job that it finds there instead of its options.

    So they are set to this call's. A job that it could not go on with is thrown away: one that was cut while it was
    being written, or between two files that belong together, which it marks as invalid.
    """
    file = work / JOB
    try:
        job = json.loads(file.read_bytes())
        sound = "invalid" not in job and job["progress"] in STAGES
    except (OSError, ValueError, TypeError, KeyError):
        sound = False
    if not sound:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return
    if job["progress"] == "finished":  # but its folder never got its name
        job["progress"] = "compile"
    job |= {"in_dir": str(source), "compile_full": str(target)}
    with files.whole(file) as temporary:
        temporary.write_text(json.dumps(job, indent=4), encoding="utf-8")


def command_of(source: Path, work: Path, target: Path, asked: Exl2, sample: Sample | None) -> list[str]:
    """The converter's command; it goes on by itself with a `work` folder that holds a job."""
    command = [sys.executable, "-P", "-m", "exllamav2.conversion.convert_exl2"]
    command += ["--in_dir", str(source), "--out_dir", str(work), "--compile_full", str(target)]
    command += ["--bits", f"{asked.bits:g}", "--head_bits", str(asked.head)]
    return command + (sample.options(work) if sample else [])


@dataclass(frozen=True)
class Sample:
    """A text as the converter reads it: rows of a table, and how many samples of how many tokens they make.

    It fails where the table has fewer tokens than it is told to take.
    """

    rows: tuple[str, ...]
    samples: int
    length: int

    @classmethod
    def of(cls, model: Checkpoint, text: str) -> Sample:
        """Raises WorkbenchError: a text too short to measure on."""
        rows = tuple(part for part in text.split("\n\n") if part.strip())
        read = model.tokenizer
        tokens = sum(len(each) for each in read(list(rows), add_special_tokens=False)["input_ids"])
        length = min(LENGTH, model.longest_context or LENGTH)
        samples = int(tokens * SPARE) // length
        if not samples:
            raise WorkbenchError("text", f"it has {tokens:,} tokens", allowed=f"{int(length / SPARE) + 1:,} or more")
        return cls(rows, min(samples, SAMPLES), length)

    def options(self, work: Path) -> list[str]:
        """What the converter is told of it."""
        few, length = str(min(self.samples, MEASURED)), str(self.length)
        told = ["--cal_dataset", str(work / TABLE), "--dataset_rows", str(self.samples), "--length", length]
        return [*told, "--measurement_rows", few, "--measurement_length", length]

    def write(self, work: Path) -> None:
        """The table, once."""
        import pandas as pd

        if not (work / TABLE).exists():
            with files.whole(work / TABLE) as temporary:
                frame = pd.DataFrame({COLUMN: list(self.rows)})
                frame.to_parquet(temporary, engine="fastparquet")  # which ExLlamaV2 brings


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


class Watch:
    """How far the converter's job file says it is, looked at again only when it was written anew."""

    def __init__(self, work: Path) -> None:
        self._file, self._seen = work / JOB, 0
        self._found = Progress(0, len(STAGES) - 1, " stages", f"EXL2: {STAGES['begin']}")

    def __call__(self) -> Progress:
        try:
            written = self._file.stat().st_mtime_ns
            if written != self._seen:
                self._seen, self._found = written, progress_of(self._file.read_text(encoding="utf-8"), self._found)
        except OSError:  # not there yet
            pass
        return self._found


def progress_of(job: str, before: Progress) -> Progress:
    """What a job file says, which may be half written: it holds a measurement of some MB, so it is not parsed."""
    stage = re.search(r'"progress": "(\w+)"', job)
    if stage is None or stage[1] not in STAGES:
        return before
    module = re.search(rf'"{AT[stage[1]]}": (\d+)', job) if stage[1] in AT else None
    where = f", module {module[1]} done" if module else ""
    return Progress(list(STAGES).index(stage[1]), len(STAGES) - 1, " stages", f"EXL2: {STAGES[stage[1]]}{where}")

"""`wb.diff`: a checkpoint that was made from another, held against it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import checkpoint as checkpoints
from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.exceptions import WorkbenchError
from workbench.forensics import unusual
from workbench.forensics.inside import Inside, look
from workbench.forensics.result import Diff
from workbench.forensics.scheme import scheme_of
from workbench.formats.rows import cores
from workbench.measure.errors import ERRORS, ErrorTable, table_steps
from workbench.measure.published import Published
from workbench.measure.text import Text
from workbench.progress import Progress, Steps, drain

if TYPE_CHECKING:
    import pandas as pd


def diff(
    original: Checkpoint | str | Path,
    quantized: Checkpoint | str | Path,
    text: Text | None = None,
    *,
    tokens: int = 2048,
    threads: int | None = None,
    anyway: bool = False,
) -> Diff:
    """What a quantized checkpoint made of each matrix of the original, and what is unusual in it.

        found = wb.diff("org/model", "stranger/model-GPTQ")
        found.heatmap()
        found.report("report.html")

    Args:
        original: an opened checkpoint, or what `wb.load` takes.
        quantized: the same, of any encoding: a folder in GPTQ, AWQ, EXL2, FP8, ..., or a GGUF.
        text: with it, output errors are measured too, as by `wb.errors`.
        tokens: how much of the text is used at most.
        threads: that decode and measure; as many as this process may use by default.
        anyway: go ahead even if it does not fit in memory.

    Every tensor is decoded on the CPU, a few runs of rows at a time; no library of the format is needed, and nothing
    in the files is run. A matrix that cannot be decoded is a finding, and the others are measured.

    Raises:
        WorkbenchError: one of them cannot be opened, or they have no matrix in common.
    """
    steps = diff_steps(original, quantized, text, tokens=tokens, threads=threads, anyway=anyway)
    return drain(steps, label="comparing checkpoints")


def diff_steps(
    original: Checkpoint | str | Path,
    quantized: Checkpoint | str | Path,
    text: Text | None = None,
    *,
    tokens: int = 2048,
    threads: int | None = None,
    anyway: bool = False,
) -> Steps[Diff]:
    """`diff`, yielding the weights that were looked at and then measured."""
    model = original if isinstance(original, Checkpoint) else (yield from checkpoints.load_steps(original))
    made = quantized if isinstance(quantized, Checkpoint) else (yield from checkpoints.load_steps(quantized))
    other = Published.of(model, made)
    matrices = [info for info in model.matrices if info.name in other.twins]
    insides = yield from _look_steps(model, other, matrices, threads)
    whole = [info for info in matrices if not insides[info.name].problem]
    table: ErrorTable | None = None
    if whole:
        table = yield from table_steps(model, [other], whole, text, tokens=tokens, threads=threads, anyway=anyway)
    frame = _frame(model, other, matrices, table)
    findings = [*unusual.in_matrices(frame, other, insides), *unusual.in_other_tensors(model, other)]
    return Diff(frame, tuple(findings), model, made, table)


def _look_steps(
    model: Checkpoint, other: Published, matrices: list[TensorInfo], threads: int | None
) -> Steps[dict[str, Inside]]:
    found: dict[str, Inside] = {}
    total, done = sum(info.params for info in matrices), 0
    stopped = threading.Event()
    pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="forensics")
    try:
        for info, inside in zip(
            matrices, pool.map(lambda info: look(model, other, info, stopped), matrices), strict=True
        ):
            found[info.name] = inside
            done += info.params
            yield Progress(done, total, " weights", f"looking into {info.name}")
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def _frame(
    model: Checkpoint, other: Published, matrices: Iterable[TensorInfo], table: ErrorTable | None
) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for info in matrices:
        twin = other.twins[info.name].info
        scheme, nbytes = scheme_of(other.other, twin), other.nbytes_of(info.name)
        rows.append(
            {
                "tensor": info.name,
                "layer": info.layer,
                "role": info.role,
                "rows": info.params // info.shape[-1],
                "cols": info.shape[-1],
                "scheme": scheme.name,
                "group": scheme.group,
                "bits": scheme.bits,
                "bytes": nbytes,
                "bits_per_weight": 8 * nbytes / info.params,
                "original": scheme_of(model, info).name,
                "original_bytes": sum(each.nbytes for each in model.held_in(info.name)),
                "quantized": scheme.quantized,
                "kind": scheme.kind,
            }
        )
    if not rows:
        raise WorkbenchError(other.name, "it has no matrix of the original's shape")
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "bits": float})
    if table is None:
        return frame.assign(weight_error=float("nan"))
    measured = [name for name in ERRORS if name in table.frame]
    return frame.join(table.frame.set_index("tensor")[measured], on="tensor")

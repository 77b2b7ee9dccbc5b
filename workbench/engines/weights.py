"""A checkpoint's tensors as a model will use them: read, put through their format, in transformers' layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from workbench.checkpoint import Checkpoint, values
from workbench.exceptions import WorkbenchError, need
from workbench.formats import Format
from workbench.formats.rows import chunks, cores
from workbench.planning import Plan
from workbench.progress import Progress

if TYPE_CHECKING:
    import torch

HALVES = {"BF16": "bfloat16", "F16": "float16"}
WORKERS = min(4, cores())  # the codecs release the interpreter's lock


def silent(step: Progress) -> None:
    """Where progress goes when nobody asked for it."""


class Weights:
    """Reads one tensor at a time, so that no more than one is held in float32.

    Args:
        plan: the format of each tensor it names; the others keep the values they have in the file.
        importance: tensor name -> float32 [in] (or [experts, in]), for the formats that use it; None: the plan's.
        report: called a few times a second with the bytes done; what it raises ends the work.

    Raises:
        WorkbenchError: a tensor cannot be read, or a format of the plan has no importance but needs it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan | None = None,
        importance: Mapping[str, np.ndarray] | None = None,
        report: Callable[[Progress], None] = silent,
    ) -> None:
        self.checkpoint = checkpoint
        self.formats: dict[str, Format] = dict(plan.formats) if plan else {}
        self.importance = importance if importance is not None else plan.importance if plan else {}
        self.report = report
        self.done, self.total = 0, sum(info.nbytes for info in checkpoint.tensors.values())
        for info in checkpoint.tensors.values():
            if info.problem:
                raise WorkbenchError(f"{checkpoint.name}, tensor {info.name}", info.problem)
        unmet = [name for name, used in self.formats.items() if used.importance == "required" and not self._has(name)]
        if unmet:
            raise WorkbenchError(
                self.formats[unmet[0]].name,
                f"this format needs an importance matrix, and {len(unmet)} tensors have none, such as {unmet[0]}",
                do="pass importance={tensor name: mean square of each input channel}: "
                "workbench.measure.calibration.calibrate(model, text).importance() makes it",
            )

    def _has(self, name: str) -> bool:
        return self.importance.get(name) is not None

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in transformers' layout, float32, or the 16-bit float of a file that is used as it is.

        `name` is the checkpoint's own name.
        """
        torch = need("torch")
        info = self.checkpoint.tensors[name]
        if self.checkpoint.kind == "safetensors" and info.encoding in HALVES and name not in self.formats:
            raw = values.bytes_at(info, 0, info.nbytes)  # by way of float32 it would take five times as long
            self._count(name, info.nbytes)
            return torch.from_numpy(raw).view(getattr(torch, HALVES[info.encoding])).view(info.shape)
        _, array = self.checkpoint.to_hf(name, self.array(name))
        return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))

    def array(self, name: str) -> np.ndarray:
        """The tensor's weights, float32 in the file's own layout, after its format's loss."""
        info = self.checkpoint.tensors[name]
        if len(info.shape) < 2:
            self._count(name, info.nbytes)
            return self.checkpoint.read(name)
        used = self.formats.get(name)
        whole = np.empty(info.shape, np.float32)

        def fill(rows: slice) -> slice:
            whole[rows] = self._through(used, name, self.checkpoint.read(name, rows), rows)
            return rows

        if len(info.shape) == 2:
            parts = list(chunks(info.shape[0], info.shape[1], used.row_multiple if used else 1))
        else:
            parts = [slice(expert, expert + 1) for expert in range(info.shape[0])]
        with ThreadPoolExecutor(min(WORKERS, len(parts) or 1)) as pool:
            for rows in pool.map(fill, parts):
                self._count(name, info.nbytes * (rows.stop - rows.start) // info.shape[0])
        return whole

    def _through(self, used: Format | None, name: str, part: np.ndarray, rows: slice) -> np.ndarray:
        """`part` (some rows of a matrix, or some experts) after encoding and decoding."""
        if used is None:
            return part
        importance = self.importance.get(name)
        if part.ndim == 2:
            return used.roundtrip(part, importance)
        for number, expert in enumerate(part, start=rows.start):
            own = importance[number] if importance is not None and importance.ndim == 2 else importance
            for some in chunks(expert.shape[0], expert.shape[1], used.row_multiple):
                self.report(Progress(self.done, self.total, "B", name))
                expert[some] = used.roundtrip(expert[some], own)
        return part

    def _count(self, name: str, nbytes: int) -> None:
        self.done += nbytes
        self.report(Progress(self.done, self.total, "B", name))

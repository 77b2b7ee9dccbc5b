"""torchao's tensors in safetensors, of those types that are plain: a code for each weight, and a scale for each block.

    W = scale (qdata - zero_point)

`_weight_qdata` [out, in] is INT8 or FP8, `_weight_scale` and `_weight_zero_point` have one value for all, for each row,
or for each group of inputs of a row. Its INT4 tensors are packed for the kernels of one kind of GPU and are refused; so
are its older checkpoints, which are pickles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.checkpoint.packed.layout import FLOATS, INTEGERS, Packed, Weights
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError

QDATA, SCALE, ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"
PLAIN = ("I8", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class TorchAo(Packed):
    """A matrix [out, in] of torchao's Int8Tensor, IntxUnpackedToInt8Tensor or Float8Tensor."""

    NEEDED = (QDATA, SCALE)
    OPTIONAL = (ZERO,)
    SCALES = (SCALE,)

    @property
    def code_bits(self) -> float:
        return 8

    @property
    def per_scale(self) -> int:
        scale = self.parts[SCALE].shape
        return self.shape[1] // scale[1] if len(scale) == 2 and scale[1] else self.shape[1]

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> TorchAo:
        qdata = parts[QDATA]
        if qdata.encoding not in PLAIN or len(qdata.shape) != 2:
            raise WorkbenchError(
                f"{qdata.file.name}, tensor {qdata.name!r}",
                f"torchao packed it as {qdata.encoding} {list(qdata.shape)} for the kernels of one kind of GPU",
                allowed=f"matrices of {', '.join(PLAIN)}, a code for each weight",
                do="find the model in another format, or save it with int8 or float8 weights",
            )
        kind = "INT8" if qdata.encoding == "I8" else qdata.encoding
        made = cls(name, parts, qdata.shape, f"torchao {kind}")
        for part in (SCALE, ZERO):
            if part in parts:
                made._check(part)
        return made

    def _check(self, part: str) -> None:
        info = self.parts[part]
        kinds = FLOATS if part == SCALE else (*FLOATS, *INTEGERS)
        rows, groups = info.shape if len(info.shape) == 2 else (info.params, 1)
        whole = rows in (1, self.shape[0]) and groups and self.shape[1] % groups == 0
        if not whole or info.encoding not in kinds:
            raise self.wrong(
                part, f"it is {info.encoding} {list(info.shape)}", f"by rows or groups of {list(self.shape)}"
            )

    def read(self, rows: slice) -> Weights:
        from workbench.checkpoint import values

        qdata = self.parts[QDATA]
        q = self.integers(QDATA)[rows].astype(np.float32) if qdata.encoding == "I8" else values.read(qdata, rows)
        if not np.isfinite(q).all():
            raise self.wrong(QDATA, "it has values that are not finite numbers")
        if ZERO in self.parts:
            zero = self.integers(ZERO) if self.parts[ZERO].encoding in INTEGERS else self.floats(ZERO)
            q -= self._spread(zero, rows)
        q *= self._spread(self.scales(SCALE), rows)
        return q

    def _spread(self, found: np.ndarray, rows: slice) -> Weights:
        """Scales or zero points [rows or 1, in or 1] of some rows."""
        table = found.reshape(-1, found.shape[1] if found.ndim == 2 else 1).astype(np.float32)
        table = table if len(table) == 1 else table[rows]
        return table if table.shape[1] == 1 else np.repeat(table, self.shape[1] // table.shape[1], axis=1)

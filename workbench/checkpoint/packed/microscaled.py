"""Stacks of experts in MXFP4, as gpt-oss publishes them: FP4 codes, and a power of two for each 32 of them.

`blocks` [experts, out, in/32, 16] has two codes in a byte, the first in the low half; `scales` [experts, out, in/32]
are exponents. (OCP Microscaling Formats, version 1.0.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.checkpoint.packed import codes
from workbench.checkpoint.packed.compressed import powers
from workbench.checkpoint.packed.layout import Packed, Weights
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError


@dataclass(frozen=True)
class Mxfp4(Packed):
    """A stack, as transformers keeps those experts: [experts, in, out]."""

    NEEDED = ("blocks", "scales")
    SCALES = ("scales",)

    @property
    def code_bits(self) -> float:
        return 4

    @property
    def per_scale(self) -> int:
        return 32

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Mxfp4:
        blocks = parts["blocks"].shape
        if len(blocks) != 4 or blocks[-1] != 16:
            raise WorkbenchError(name, f"its blocks are {list(blocks)}", allowed="[experts, out, in/32, 16]")
        made = cls(name, parts, (blocks[0], 32 * blocks[2], blocks[1]), "MXFP4")
        made.check("blocks", blocks, ("U8",))
        made.check("scales", blocks[:3], ("U8",))
        return made

    def read(self, rows: slice) -> Weights:
        weights = codes.FP4[codes.nibbles(self.integers("blocks")[rows])]
        weights *= powers(self.integers("scales")[rows])[..., None]
        return np.ascontiguousarray(weights.reshape(len(weights), self.shape[2], self.shape[1]).swapaxes(1, 2))

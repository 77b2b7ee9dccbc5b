"""AWQ: 4-bit codes, a scale and a zero point for each group of inputs and each output.

    W[o, i] = s (q - z), z as it is stored

The GEMM layout packs eight outputs in a word, in the order its kernel wants them: `qweight` [in, out/8], `qzeros`
[groups, out/8], `scales` [groups, out]. The GEMV layout packs eight inputs, in their order: `qweight` [out, in/8],
`qzeros` [out, ..] and `scales` [out, ..], both with more groups than there are, for alignment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.checkpoint.packed import codes
from workbench.checkpoint.packed.layout import FLOATS, Packed, Weights
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError

SLOTS = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # the output, of eight, that each nibble of a word holds


@dataclass(frozen=True)
class Awq(Packed):
    """A matrix [out, in] of AWQ; `group` inputs share a scale."""

    group: int
    gemv: bool

    NEEDED = ("qweight", "qzeros", "scales")
    SCALES = ("scales",)

    @property
    def code_bits(self) -> float:
        return 4

    @property
    def per_scale(self) -> int:
        return self.group

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Awq:
        bits = settings.get("bits")
        if bits not in (None, 4):
            raise WorkbenchError(name, f"config.json says AWQ of {bits!r:.20} bits", allowed="4")
        version = str(settings.get("version", settings.get("format", "gemm"))).lower()
        if version not in ("gemm", "gemv"):
            raise WorkbenchError(name, f"its AWQ layout {version[:40]!r} is unknown", allowed="gemm, gemv")
        qweight, scales = parts["qweight"].shape, parts["scales"].shape
        if len(qweight) != 2 or len(scales) != 2:
            raise WorkbenchError(name, f"its qweight is {list(qweight)}, its scales {list(scales)}", allowed="matrices")
        gemv = version == "gemv"
        outputs, inputs = (qweight[0], 8 * qweight[1]) if gemv else (8 * qweight[1], qweight[0])
        size = settings.get("group_size")
        if size is not None and (type(size) is not int or size == 0 or size < -1):
            raise WorkbenchError(
                name, f"config.json says group_size {size!r:.20}", allowed="-1, or inputs that share a scale"
            )
        group = size if type(size) is int and size > 0 else inputs
        groups = -(-inputs // group)
        made = cls(name, parts, (outputs, inputs), f"AWQ 4-bit g{group}", group, gemv)
        made.check("qweight", qweight, ("I32",))
        if gemv:
            width = parts["qzeros"].shape[-1] if parts["qzeros"].shape else 0
            if 8 * width < groups:
                raise made.wrong("qzeros", f"it is {list(parts['qzeros'].shape)} for {groups:,} groups")
            made.check("scales", (outputs, max(8 * width, groups)), FLOATS)
            made.check("qzeros", (outputs, width), ("I32",))
        else:
            made.check("scales", (groups, outputs), FLOATS)
            made.check("qzeros", (groups, outputs // 8), ("I32",))
        return made

    def read(self, rows: slice) -> Weights:
        inputs = self.shape[1]
        group = np.arange(inputs) // self.group
        if self.gemv:
            q = codes.stream(self.integers("qweight")[rows], 4, inputs)
            zeros = codes.stream(self.integers("qzeros")[rows], 4, self.parts["scales"].shape[1])
            scales = self.floats("scales")[rows][:, : -(-inputs // self.group)]
        else:
            q, zeros = (self._outputs(part)[:, rows].T for part in ("qweight", "qzeros"))
            scales = self.scales("scales")[:, rows].T
        if not scales.all():  # GEMV's are padded with zeros, which are not looked at
            raise self.wrong("scales", "some of its scales are zero")
        weights = (q - zeros[:, group]).astype(np.float32)
        weights *= scales[:, group]
        return weights

    def _outputs(self, part: str) -> np.ndarray:
        """[.., out/8] words as [.., out] codes, in the outputs' order."""
        words = self.integers(part)
        slots = codes.stream(words[..., None], 4, 8)
        found = np.empty_like(slots)
        found[..., SLOTS] = slots
        return found.reshape(len(words), -1)

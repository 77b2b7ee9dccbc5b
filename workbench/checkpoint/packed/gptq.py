"""GPTQ: codes packed along the inputs, a scale and a zero point for each group of inputs and each output.

    W[o, i] = s[g(i), o] (q[i, o] - z[g(i), o])

`qweight` [in b/32, out] and `qzeros` [groups, out b/32] are streams of b bits, `scales` [groups, out]; `g_idx` [in]
names the group of each input, which act-order shuffles. The first version of the format stores z - 1 in b bits, the
second z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.checkpoint.packed import codes
from workbench.checkpoint.packed.layout import FLOATS, Packed, Weights, check_groups, words
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Gptq(Packed):
    """A matrix [out, in] of GPTQ. `second`: zero points are stored as they are."""

    bits: int
    second: bool

    NEEDED = ("qweight", "qzeros", "scales")
    OPTIONAL = ("g_idx",)
    SCALES = ("scales",)

    @property
    def code_bits(self) -> float:
        return self.bits

    @property
    def per_scale(self) -> int:
        return -(-self.shape[1] // max(1, self.parts["scales"].shape[0]))

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Gptq:
        """From the parts' shapes, which the config's `settings` for this module must agree with."""
        qweight, scales = parts["qweight"].shape, parts["scales"].shape
        if len(qweight) != 2 or len(scales) != 2:
            raise WorkbenchError(name, f"its qweight is {list(qweight)}, its scales {list(scales)}", allowed="matrices")
        said, groups = settings.get("bits"), scales[0]
        if said is not None and said not in BITS:
            raise WorkbenchError(
                name, f"config.json says bits {said!r:.20}", allowed=f"GPTQ of {', '.join(map(str, BITS))} bits"
            )
        if "g_idx" not in parts and said is None:
            raise WorkbenchError(name, "it has no g_idx, and config.json says no bits: its shape cannot be known")
        inputs = parts["g_idx"].params if "g_idx" in parts else 32 * qweight[0] // int(said or 1)
        bits = 32 * qweight[0] // inputs if inputs else 0
        if bits not in BITS:
            raise WorkbenchError(
                name,
                f"its qweight {list(qweight)} for {inputs:,} inputs has codes of {bits} bits",
                allowed=", ".join(map(str, BITS)),
            )
        if said not in (None, bits):
            raise WorkbenchError(name, f"its qweight has codes of {bits} bits, and config.json says {said}")
        check_groups(name, groups, inputs, settings)
        size = f" g{-(-inputs // groups)}" if groups > 1 else ""
        second = str(settings.get("checkpoint_format")) == "gptq_v2"
        made = cls(name, parts, (qweight[1], inputs), f"GPTQ {bits}-bit{size}", bits, second)
        made.check("qweight", (words(inputs, bits), qweight[1]), ("I32",))
        made.check("scales", (groups, qweight[1]), FLOATS)
        made.check("qzeros", (groups, words(qweight[1], bits)), ("I32",))
        if "g_idx" in parts:
            made.check("g_idx", (inputs,), ("I32", "I64"))
        return made

    def read(self, rows: slice) -> Weights:
        q = codes.stream(np.ascontiguousarray(self.integers("qweight")[:, rows].T), self.bits, self.shape[1])
        scales = self.scales("scales")[:, rows].T
        zeros = self._zeros()[:, rows].T
        group = self._groups(scales.shape[1])
        weights = (q - zeros[:, group]).astype(np.float32)
        weights *= scales[:, group]
        return weights

    def _zeros(self) -> codes.Codes:
        """[groups, out]

        Writers of the first version take 1 from every code at once, by a subtraction of whole words, so that a code
        of 0 borrows from its neighbour; a sum of whole words undoes that. Where codes straddle words each is
        counted alone.
        """
        stored, step = self.integers("qzeros"), 0 if self.second else 1
        if step and 32 % self.bits == 0:
            ones = sum(1 << at for at in range(0, 32, self.bits))
            return codes.stream(stored.view(np.uint32) + np.uint32(ones), self.bits, self.shape[0])
        return (codes.stream(stored, self.bits, self.shape[0]) + step) & ((1 << self.bits) - 1)

    def _groups(self, count: int) -> np.ndarray:
        """[in] the group of each input."""
        inputs = self.shape[1]
        if "g_idx" not in self.parts:
            return np.arange(inputs) // -(-inputs // count)
        found = self.integers("g_idx")
        if found.size and not 0 <= found.min() <= found.max() < count:
            raise self.wrong("g_idx", f"it names the groups {found.min()} to {found.max()}", f"0 to {count - 1}")
        return found

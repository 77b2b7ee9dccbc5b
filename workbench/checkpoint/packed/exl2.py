"""EXL2: groups of inputs of 2 to 8 bits each, the inputs sorted so that the important ones get the most.

From the source of ExLlamaV2's unpacking. For the g-th group of inputs, in their sorted order, `q_groups`
[2 groups] has its bits and the first row of `q_weight` [rows, out] that holds it: the codes of an output are a stream
of bits down these rows.

    W[perm[j], o] = (q[j, o] - 2^(b-1)) (c[g, o] + 1)^2 m[g] / 256

with c [groups, out] the 4-bit codes of `q_scale` and m `q_scale_max`; sorted row j is input `q_invperm`^-1 [j].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.checkpoint.packed import codes
from workbench.checkpoint.packed.layout import FLOATS, Packed, Weights, words
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError

BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Exl2(Packed):
    """A matrix [out, in] of EXL2."""

    NEEDED = ("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm")
    OPTIONAL = ("q_perm",)
    SCALES = ("q_scale_max",)

    @property
    def code_bits(self) -> float:
        return 32 * self.parts["q_weight"].shape[0] / self.shape[1]

    @property
    def per_scale(self) -> int:
        return -(-self.shape[1] // max(1, self.parts["q_scale_max"].params))

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Exl2:
        q_weight, inputs = parts["q_weight"].shape, parts["q_invperm"].params
        groups = parts["q_scale_max"].params
        if len(q_weight) != 2:
            raise WorkbenchError(name, f"its q_weight is {list(q_weight)}", allowed="a matrix")
        bits = 32 * q_weight[0] / max(1, inputs)
        made = cls(name, parts, (q_weight[1], inputs), f"EXL2 {bits:.2f}-bit")
        made.check("q_weight", q_weight, ("I32",))
        made.check("q_scale", (groups, words(q_weight[1], 4)), ("I32",))
        made.check("q_scale_max", (groups,), FLOATS)
        made.check("q_groups", (2 * groups,), ("I16",))
        made.check("q_invperm", (inputs,), ("I32", "I16"))
        return made

    def read(self, rows: slice) -> Weights:
        outputs, inputs = self.shape
        q_weight = self.integers("q_weight")[:, rows]
        roots = codes.stream(self.integers("q_scale"), 4, outputs)[:, rows] + 1
        scales = roots.astype(np.float32) ** 2 * self.scales("q_scale_max")[:, None] / 256
        weights = np.empty((inputs, q_weight.shape[1]), np.float32)
        done = 0
        for group, (bits, first, end) in enumerate(self._groups(len(q_weight))):
            count = min(32 * (end - first) // bits, inputs - done)
            q = codes.stream(np.ascontiguousarray(q_weight[first:end].T), bits, count).T
            weights[done : done + count] = (q - (1 << (bits - 1))) * scales[group]
            done += count
        if done != inputs:
            raise self.wrong("q_groups", f"its groups hold {done} inputs", f"{inputs}")
        return np.ascontiguousarray(weights[self._place()].T)

    def _groups(self, rows: int) -> list[tuple[int, int, int]]:
        """(bits, first row, row after the last) of each group."""
        found = self.integers("q_groups").view(np.uint16).astype(int).reshape(-1, 2)
        ends = [*found[1:, 1].tolist(), rows]
        groups = [(bits, first, end) for (bits, first), end in zip(found.tolist(), ends, strict=True)]
        for number, (bits, first, end) in enumerate(groups):
            if bits not in BITS or not 0 <= first < end <= rows:
                found_there = f"its group {number} has {bits} bits in the rows {first} to {end} of {rows}"
                raise self.wrong("q_groups", found_there, f"{', '.join(map(str, BITS))} bits, rows that ascend")
        return groups

    def _place(self) -> np.ndarray:
        """[in] the sorted row of each input."""
        found = self.integers("q_invperm").astype(np.int64)
        if not np.array_equal(np.sort(found), np.arange(len(found))):
            raise self.wrong("q_invperm", "it is no permutation of the inputs")
        return found

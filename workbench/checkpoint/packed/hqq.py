"""HQQ, as its library and transformers save it in safetensors: codes, scales and zero points, and how they lie.

    W.flat[r n + c] = s (q[r, c] - z)

The weights, flat, are a table of n columns: with `axis` 1 of as many as `group_size`, so that a group is a row of it;
with axis 0 of as many rows, so that a group is a column. `W_q` packs that table along its rows: a word holds a code of
each half (quarter, tenth, ..) of it, the first in its highest bits. The other settings are tensors of one number, or of
the letters of a word, some of which the library evaluates as code; here they are compared with what they may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from workbench.checkpoint.packed.layout import FLOATS, INTEGERS, Packed, Weights
from workbench.checkpoint.tensors import TensorInfo

# `packing` -> (codes in a word, bits of a code, the word)
PACKINGS: dict[str, tuple[int, int, np.dtype[Any]]] = {
    "8bit_u8": (1, 8, np.dtype("u1")),
    "4bit_u8": (2, 4, np.dtype("u1")),
    "3bit_32": (10, 3, np.dtype("<u4")),
    "2bit_u8": (4, 2, np.dtype("u1")),
    "1bit_u8": (8, 1, np.dtype("u1")),
}
LONGEST_WORD = 64  # letters of a setting


@dataclass(frozen=True)
class Hqq(Packed):
    """A matrix [out, in] of HQQ. `table`: rows and columns of its codes; `along`: whether a group is a row of it."""

    packing: str
    table: tuple[int, int]
    along: bool

    NEEDED = ("W_q", "scale", "zero", "shape", "packing")
    OPTIONAL = (
        *("nbits", "group_size", "axis", "view_as_float", "unpack_view_dtype", "quant_scale", "quant_zero"),
        *("compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config"),
        *("channel_wise", "optimize", "round_zero"),
    )
    SCALES = ("scale",)

    @property
    def code_bits(self) -> float:
        return PACKINGS[self.packing][1]

    @property
    def per_scale(self) -> int:
        return min(self.table[1], self.shape[1]) if self.along else self.shape[1]

    @property
    def shared(self) -> str:
        return super().shared if self.along else f"{self.table[0]} outputs"

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Hqq:
        bare = cls(name, parts, (), "", "", (0, 0), True)
        packing = bare._word("packing")
        if packing not in PACKINGS:
            raise bare.wrong("packing", f"it is {packing!r}", ", ".join(PACKINGS))
        for part in ("quant_scale", "quant_zero"):
            if part in parts and bare._numbers(part)[0]:
                raise bare.wrong(part, "its scales are quantized themselves, which is saved in pickles alone")
        shape = bare._numbers("shape")
        if len(shape) != 2 or min(shape) < 1:
            raise bare.wrong("shape", f"it is {shape}", "outputs and inputs")
        axis = bare._numbers("axis")[0] if "axis" in parts else 1
        group = bare._numbers("group_size")[0] if "group_size" in parts else shape[1]
        if axis not in (0, 1) or group < 1 or prod(shape) % group:
            raise bare.wrong("axis", f"groups of {group} along axis {axis} for a matrix {shape}", "axis 0 or 1")
        table = (prod(shape) // group, group) if axis else (group, prod(shape) // group)
        if "group_size" not in parts:
            table = shape[0], shape[1]
        codes, bits, word = PACKINGS[packing]
        size = f" g{group}" if "group_size" in parts else ""
        made = cls(name, parts, (shape[0], shape[1]), f"HQQ {bits}-bit{size}", packing, table, axis == 1)
        rows = -(-table[0] // codes)
        if parts["W_q"].nbytes != rows * table[1] * word.itemsize:
            found = f"it has {parts['W_q'].nbytes:,} bytes"
            raise made.wrong("W_q", found, f"{rows * table[1] * word.itemsize:,} for {shape} in {packing}")
        groups = table[0] if axis else table[1]
        for part in ("scale", "zero"):
            if parts[part].params not in (1, groups) or parts[part].encoding not in FLOATS:
                found = f"it is {parts[part].encoding} {list(parts[part].shape)}"
                raise made.wrong(part, found, f"a float for each of {groups:,} groups")
        return made

    @classmethod
    def sketch(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Hqq:
        columns = parts["W_q"].shape[-1] if parts["W_q"].shape else 1
        table = parts["scale"].params, columns
        return cls(name, parts, table, "HQQ", "8bit_u8", table, True)

    def read(self, rows: slice) -> Weights:
        from workbench.checkpoint import values

        inputs, columns = self.shape[1], self.table[1]
        first, end, _ = rows.indices(self.shape[0])
        start, stop = first * inputs, end * inputs
        there = np.arange(start // columns, -(-stop // columns))
        codes, bits, word = PACKINGS[self.packing]
        info = self.parts["W_q"]
        words = values.bytes_at(info, 0, info.nbytes).view(word).reshape(-1, columns)
        place = np.arange(codes)[there // len(words)]
        shift = (bits * (codes - 1 - place)).astype(word)[:, None]
        q = (words[there % len(words)] >> shift) & word.type((1 << bits) - 1)
        table = (q.astype(np.float32) - self._by_group("zero", self.floats("zero"), there)) * self._by_group(
            "scale", self.scales("scale"), there
        )
        return (
            table.reshape(-1)[start - there[0] * columns :][: stop - start].reshape(-1, inputs) if len(there) else table
        )

    def _by_group(self, part: str, found: Weights, rows: np.ndarray) -> Weights:
        """Scales or zero points as they spread over some rows of the table."""
        flat = found.reshape(-1)
        if flat.size == 1:
            return flat
        return flat[rows, None] if self.along else flat[None, :]

    def _numbers(self, part: str) -> list[int]:
        info = self.parts[part]
        if info.params > 2 or info.encoding not in INTEGERS:
            raise self.wrong(part, f"it is {info.encoding} {list(info.shape)}", "a whole number, or two for a shape")
        return [int(each) for each in self.integers(part).reshape(-1)]

    def _word(self, part: str) -> str:
        info = self.parts[part]
        if info.encoding != "U8" or info.params > LONGEST_WORD:
            raise self.wrong(part, f"it is {info.encoding} {list(info.shape)}", "the letters of a word as U8")
        return self.integers(part).tobytes().decode("ascii", "replace")

"""Formats as tensors of a folder: how a matrix is named, laid out and packed by compressed-tensors and bitsandbytes.

compressed-tensors' `weight_packed` is a little-endian stream of codes along the inputs, in words of 32 bits, offset so
that none is negative; `weight_zero_point` the same along the outputs. bitsandbytes keeps the arrays of its own
functions, and the shape as JSON in bytes. workbench.checkpoint.packed reads both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.formats.bitsandbytes import BLOCK, FourBit, library
from workbench.formats.bitsandbytes import Int8 as LlmInt8
from workbench.formats.fp8 import TILE, Fp8, Fp8Block
from workbench.formats.integer import Int4, Int8, Int8Row

Tensors = dict[str, tuple[str, tuple[int, ...]]]  # ending of the name -> (safetensors' data type, shape)
Arrays = dict[str, np.ndarray]
WORD = 8  # codes of 4 bits in a word of 32
STATE = "weight.quant_state.bitsandbytes__"


@dataclass(frozen=True)
class Stored:
    """One matrix [rows, cols] of a folder, in `format`.

    Attributes:
        method: the library whose layout it is, as `quantization_config` names it.
        multiple: rows that are encoded together are a multiple of this, so that each run ends with a whole word.
    """

    format: Format
    shape: tuple[int, int]

    method: ClassVar[str] = "compressed-tensors"
    multiple: ClassVar[int] = 1

    def check(self, name: str) -> None:
        """Raise WorkbenchError for a shape that the layout cannot hold."""
        group = getattr(self.format, "group", 0)
        if group and self.shape[1] % group:
            smaller = [size for size in (32, 64, 128) if self.shape[1] % size == 0]
            raise WorkbenchError(
                name,
                f"its rows have {self.shape[1]} weights, which groups of {group} do not divide",
                allowed=f"groups of {' or '.join(map(str, smaller))}" if smaller else "a format without groups",
                do="choose another format for it; the kernels of GPUs take whole groups only",
            )

    def tensors(self) -> Tensors:
        """What the matrix is stored as."""
        raise NotImplementedError

    def pieces(self, parts: Arrays) -> Arrays:
        """The tensors' values for a run of rows, from the format's own parts; in the order of the rows."""
        raise NotImplementedError

    def whole(self) -> Arrays:
        """The tensors that do not grow with the rows."""
        return {}


class Float8(Stored):
    """`weight` in E4M3 and a scale for each row."""

    def tensors(self) -> Tensors:
        return {"weight": ("F8_E4M3", self.shape), "weight_scale": ("F32", (self.shape[0], 1))}

    def pieces(self, parts: Arrays) -> Arrays:
        return {"weight": parts["codes"], "weight_scale": parts["scale"]}


class Tiles(Float8):
    """`weight` in E4M3 and a scale for each tile."""

    def check(self, name: str) -> None:
        if self.shape[0] % TILE or self.shape[1] % TILE:
            raise WorkbenchError(
                name,
                f"it is {self.shape[0]} by {self.shape[1]}, which tiles of {TILE} by {TILE} do not divide",
                allowed="FP8, with a scale for each row",
                do="choose that for it; the kernels of GPUs take whole tiles only",
            )

    def tensors(self) -> Tensors:
        return {
            "weight": ("F8_E4M3", self.shape),
            "weight_scale": ("F32", (self.shape[0] // TILE, self.shape[1] // TILE)),
        }


class Bytes(Float8):
    """`weight` in INT8 and a scale for each row."""

    def tensors(self) -> Tensors:
        return {"weight": ("I8", self.shape), "weight_scale": ("F32", (self.shape[0], 1))}


class Words(Stored):
    """Groups of INT8, packed in words, without zero points."""

    bits: ClassVar[int] = 8

    @property
    def groups(self) -> int:
        return self.shape[1] // self.format.group  # type: ignore[attr-defined]

    def tensors(self) -> Tensors:
        return {
            "weight_packed": ("I32", (self.shape[0], self.shape[1] * self.bits // 32)),
            "weight_scale": ("F16", (self.shape[0], self.groups)),
            "weight_shape": ("I64", (2,)),
        }

    def pieces(self, parts: Arrays) -> Arrays:
        unsigned = (parts["codes"].astype(np.int16) + 128).astype(np.uint8)
        return {"weight_packed": unsigned.view("<i4"), "weight_scale": parts["scale"]}

    def whole(self) -> Arrays:
        return {"weight_shape": np.array(self.shape, "<i8")}


class HalfBytes(Words):
    """Groups of INT4 with zero points, both packed in words."""

    bits = 4
    multiple = WORD

    def tensors(self) -> Tensors:
        zeros = ("I32", (-(-self.shape[0] // WORD), self.groups))
        return {**super().tensors(), "weight_zero_point": zeros}

    def pieces(self, parts: Arrays) -> Arrays:
        zeros = np.stack([parts["zero"] & 15, parts["zero"] >> 4], -1).reshape(len(parts["zero"]), -1)
        zeros = np.pad(zeros[:, : self.groups], ((0, -len(zeros) % WORD), (0, 0))).astype(np.uint32)
        shifts = (4 * np.arange(WORD, dtype=np.uint32))[None, :, None]
        words = np.bitwise_or.reduce(zeros.reshape(-1, WORD, self.groups) << shifts, axis=1)
        packed = parts["codes"].view("<i4")  # two codes of a byte, the first in its low half: the same stream
        return {"weight_packed": packed, "weight_scale": parts["scale"], "weight_zero_point": words.view("<i4")}


class BnbFourBit(Stored):
    """NF4 or FP4: codes and scales of the matrix as one long row, the 16 values, and its shape as JSON."""

    method = "bitsandbytes"

    def check(self, name: str) -> None:
        if self.shape[0] * self.shape[1] % BLOCK:
            raise WorkbenchError(
                name, f"it has {self.shape[0] * self.shape[1]} weights", allowed=f"a multiple of {BLOCK}"
            )

    @property
    def _state(self) -> bytes:
        kind = self.format.name.lower()
        said = {"quant_type": kind, "blocksize": BLOCK, "dtype": "bfloat16", "shape": list(self.shape)}
        return json.dumps(said).encode()

    def tensors(self) -> Tensors:
        count = self.shape[0] * self.shape[1]
        return {
            "weight": ("U8", (count // 2, 1)),
            "weight.absmax": ("F32", (count // BLOCK,)),
            "weight.quant_map": ("F32", (16,)),
            f"{STATE}{self.format.name.lower()}": ("U8", (len(self._state),)),
        }

    def pieces(self, parts: Arrays) -> Arrays:
        return {"weight": parts["codes"], "weight.absmax": parts["absmax"]}

    def whole(self) -> Arrays:
        state = np.frombuffer(self._state, np.uint8)
        return {"weight.quant_map": _values(self.format.name.lower()), f"{STATE}{self.format.name.lower()}": state}


class BnbInt8(Stored):
    """LLM.int8: INT8, the greatest magnitude of each row, and which layout of several it is (0: by rows)."""

    method = "bitsandbytes"

    def tensors(self) -> Tensors:
        return {"weight": ("I8", self.shape), "SCB": ("F32", self.shape[:1]), "weight_format": ("U8", ())}

    def pieces(self, parts: Arrays) -> Arrays:
        codes, absmax = parts["codes"], parts["absmax"]
        return {"weight": codes, "SCB": absmax.reshape(-1)}

    def whole(self) -> Arrays:
        return {"weight_format": np.zeros((), np.uint8)}


KINDS: dict[type[Format], type[Stored]] = {
    **{Fp8: Float8, Fp8Block: Tiles, Int8Row: Bytes, Int8: Words, Int4: HalfBytes},
    **{FourBit: BnbFourBit, LlmInt8: BnbInt8},
}


def stored(name: str, format: Format, shape: tuple[int, int]) -> Stored:
    """How the matrix `name` is stored in a folder.

    Raises:
        WorkbenchError: a format that no such folder holds, or a shape that its layout cannot hold.
    """
    kind = KINDS.get(type(format))
    if kind is None:
        raise WorkbenchError(
            name,
            f"checkpoints for GPUs have no {format.name}",
            allowed="FP8, INT8-row, INT8 and INT4 in groups; NF4, FP4, LLM.int8; or a float, which leaves it as it is",
            do="wb.export writes GGUF's formats" if format.family == "ggml" else "",
        )
    made = kind(format, shape)
    made.check(name)
    return made


@cache
def _values(kind: str) -> np.ndarray:
    """The 16 values of a 4-bit type, by bitsandbytes itself."""
    return library().functional.get_4bit_type(kind, device="cpu").numpy().astype(np.float32)

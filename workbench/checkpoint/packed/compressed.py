"""compressed-tensors: what llm-compressor writes and vLLM reads, in its layouts of packed integers, integers, and FP4.

    W[o, i] = s[o, g(i)] (q[o, i] - z[o, g(i)])

`weight_packed` [out, in b/32] is a stream of b bits along the inputs, of q + 2^(b-1); `weight_zero_point`
[out b/32, groups] the same along the outputs; `weight_scale` [out, groups]. Unpacked they are `weight` [out, in], INT8.
NVFP4 keeps two FP4 codes in a byte, an FP8 scale for 16 inputs, and divides by `weight_global_scale`; MXFP4 a
power of two for 32 inputs. ModelOpt's NVFP4 differs in names, and in that its second scale multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench.checkpoint.packed import codes
from workbench.checkpoint.packed.layout import FLOATS, INTEGERS, Packed, Weights, check_groups, words
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError

FP8 = ("F8_E4M3",)
EXPONENT = 127  # of 2^0 in a scale that is an exponent alone (E8M0)


@dataclass(frozen=True)
class PackedIntegers(Packed):
    """A matrix [out, in] of integers of `bits` bits, in words."""

    bits: int

    NEEDED = ("weight_packed", "weight_scale")
    OPTIONAL = ("weight_zero_point", "weight_shape", "weight_g_idx")
    SCALES = ("weight_scale",)

    @property
    def code_bits(self) -> float:
        return self.bits

    @property
    def per_scale(self) -> int:
        return _per_scale(self)

    @staticmethod
    def fits(parts: Mapping[str, TensorInfo], bits: int) -> bool:
        """Whether the words hold codes of so many bits; without a `weight_shape` any may."""
        packed, shape = parts["weight_packed"].shape, parts.get("weight_shape")
        if shape is None or len(packed) != 2 or shape.shape != (2,) or shape.encoding not in INTEGERS:
            return True
        return words(int(Packed("", parts, (), "").integers("weight_shape")[1]), bits) == packed[1]

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> PackedIntegers:
        """The shape is that of `weight_shape`, or else what the words of `num_bits` codes hold."""
        packed, scale = parts["weight_packed"].shape, parts["weight_scale"].shape
        widths = settings.get("widths") or [settings.get("num_bits")]
        bits = next((each for each in widths if _is_width(each) and cls.fits(parts, each)), widths[0])
        if type(bits) is not int or not 1 <= bits <= 8 or len(packed) != 2 or len(scale) != 2:
            raise WorkbenchError(
                name,
                f"config.json says num_bits {bits!r:.20} for its weight_packed {list(packed)}",
                allowed="1 to 8 in config_groups",
            )
        inputs = 32 * packed[1] // bits
        if "weight_shape" in parts:
            bare = cls(name, parts, (), "", bits)
            if parts["weight_shape"].shape != (2,) or parts["weight_shape"].encoding not in INTEGERS:
                raise bare.wrong("weight_shape", f"it is {list(parts['weight_shape'].shape)}", "two whole numbers")
            kept = bare.integers("weight_shape").tolist()
            if kept[0] != packed[0] or kept[1] < 1 or words(kept[1], bits) != packed[1]:
                said = f"it is {kept}, and weight_packed {list(packed)} in codes of {bits} bits"
                raise bare.wrong("weight_shape", said)
            inputs = kept[1]
        size = f" g{-(-inputs // scale[1])}" if scale[1] > 1 else ""
        made = cls(name, parts, (packed[0], inputs), f"INT{bits}{size}", bits)
        made.check("weight_packed", packed, ("I32",))
        made.check("weight_scale", (packed[0], scale[1]), FLOATS)
        check_groups(name, scale[1], inputs, settings if settings.get("strategy", "group") == "group" else {})
        if "weight_zero_point" in parts:
            made.check("weight_zero_point", (words(packed[0], bits), scale[1]), ("I32",))
        return made

    @classmethod
    def sketch(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> PackedIntegers:
        made = cls.of(name, {part: info for part, info in parts.items() if part != "weight_shape"}, settings)
        return replace(made, parts=parts)

    def read(self, rows: slice) -> Weights:
        q = codes.stream(self.integers("weight_packed")[rows], self.bits, self.shape[1])
        scale = self.scales("weight_scale")[rows]
        zeros = np.full(scale.shape, 1 << (self.bits - 1))
        if "weight_zero_point" in self.parts:
            stored = np.ascontiguousarray(self.integers("weight_zero_point").T)
            zeros = codes.stream(stored, self.bits, self.shape[0]).T[rows]
        group = _groups(self, scale.shape[1])
        weights = (q - zeros[:, group]).astype(np.float32)
        weights *= scale[:, group]
        return weights


@dataclass(frozen=True)
class Integers(Packed):
    """A matrix [out, in] of INT8, one to a byte."""

    NEEDED = ("weight", "weight_scale")
    OPTIONAL = ("weight_zero_point", "weight_g_idx")
    SCALES = ("weight_scale",)

    @property
    def code_bits(self) -> float:
        return 8

    @property
    def per_scale(self) -> int:
        return _per_scale(self)

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Integers:
        shape, scale = parts["weight"].shape, parts["weight_scale"]
        made = cls(name, parts, shape, "INT8")
        made.check("weight", shape, ("I8",))
        if len(shape) != 2:
            raise made.wrong("weight", f"it is {list(shape)}", "a matrix")
        if scale.params != 1 and scale.shape[:1] != shape[:1]:
            raise made.wrong("weight_scale", f"it has shape {list(scale.shape)}", f"one for each of {shape[0]} rows")
        return made

    def read(self, rows: slice) -> Weights:
        q = self.integers("weight")[rows].astype(np.float32)
        scale = self._by_row("weight_scale", self.scales("weight_scale"), rows)
        group = _groups(self, scale.shape[1])
        if "weight_zero_point" in self.parts:
            q -= self._by_row("weight_zero_point", self.integers("weight_zero_point"), rows)[:, group]
        return q * scale[:, group]

    def _by_row(self, part: str, values: np.ndarray, rows: slice) -> np.ndarray:
        """[rows, groups] of a part that has one value for all, for each row, or for each group of a row."""
        if values.size == 1:
            return np.broadcast_to(values.reshape(1, 1), (self.shape[0], 1))[rows]
        if values.shape[:1] != self.shape[:1]:
            raise self.wrong(part, f"it has shape {list(values.shape)}", f"one for each of {self.shape[0]} rows")
        return values.reshape(self.shape[0], -1)[rows]


@dataclass(frozen=True)
class Fp4(Packed):
    """A matrix [out, in] of FP4 in `weight_packed` [out, in/2], NVFP4 or MXFP4 by its scales."""

    NEEDED = ("weight_packed", "weight_scale")
    OPTIONAL = ("weight_global_scale",)
    SCALES = ("weight_scale", "weight_global_scale")

    @property
    def code_bits(self) -> float:
        return 4

    @property
    def per_scale(self) -> int:
        return 16 if "weight_global_scale" in self.parts else 32

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Fp4:
        packed = parts["weight_packed"].shape
        nvidia = "weight_global_scale" in parts
        if len(packed) != 2:
            raise WorkbenchError(name, f"its weight_packed is {list(packed)}", allowed="a matrix")
        shape = (packed[0], 2 * packed[1])
        made = cls(name, parts, shape, "NVFP4" if nvidia else "MXFP4")
        made.check("weight_packed", packed, ("U8",))
        if nvidia and parts["weight_global_scale"].params != 1:
            raise made.wrong("weight_global_scale", f"it is {list(parts['weight_global_scale'].shape)}", "one number")
        made.check("weight_scale", (packed[0], -(-shape[1] // (16 if nvidia else 32))), FP8 if nvidia else ("U8",))
        return made

    def read(self, rows: slice) -> Weights:
        weights = codes.FP4[codes.nibbles(self.integers("weight_packed")[rows])]
        if "weight_global_scale" in self.parts:
            scale = self.floats("weight_scale")[rows] / self.scales("weight_global_scale").reshape(-1)[0]
        else:
            scale = powers(self.integers("weight_scale")[rows])
        weights *= np.repeat(scale, -(-self.shape[1] // scale.shape[1]), axis=1)[:, : self.shape[1]]
        return weights


@dataclass(frozen=True)
class ModelOptFp4(Packed):
    """A matrix [out, in] of NVFP4 as NVIDIA's ModelOpt names its parts; `weight_scale_2` multiplies."""

    NEEDED = ("weight", "weight_scale", "weight_scale_2")
    SCALES = ("weight_scale", "weight_scale_2")

    @property
    def code_bits(self) -> float:
        return 4

    @property
    def per_scale(self) -> int:
        return 16

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> ModelOptFp4:
        packed = parts["weight"].shape
        if len(packed) != 2 or parts["weight_scale_2"].params != 1:
            found = f"its weight is {list(packed)}, its weight_scale_2 {list(parts['weight_scale_2'].shape)}"
            raise WorkbenchError(name, found, allowed="a matrix, and one number")
        made = cls(name, parts, (packed[0], 2 * packed[1]), "NVFP4")
        made.check("weight", packed, ("U8",))
        made.check("weight_scale", (packed[0], -(-2 * packed[1] // 16)), FP8)
        return made

    def read(self, rows: slice) -> Weights:
        weights = codes.FP4[codes.nibbles(self.integers("weight")[rows])]
        scale = self.floats("weight_scale")[rows] * self.scales("weight_scale_2").reshape(-1)[0]
        weights *= np.repeat(scale, 16, axis=1)[:, : self.shape[1]]
        return weights


def powers(exponents: np.ndarray) -> Weights:
    """Scales that are exponents alone, as powers of two."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - EXPONENT)


def _is_width(bits: object) -> bool:
    return type(bits) is int and 1 <= bits <= 8


def _per_scale(matrix: Packed) -> int:
    scale = matrix.parts["weight_scale"]
    by_group = len(scale.shape) == 2 and scale.params > 1
    return -(-matrix.shape[1] // max(1, scale.shape[1])) if by_group else matrix.shape[1]


def _groups(matrix: Packed, count: int) -> np.ndarray:
    """[in] the group of each input."""
    inputs = matrix.shape[1]
    if "weight_g_idx" not in matrix.parts:
        return np.arange(inputs) // -(-inputs // count)
    found = matrix.integers("weight_g_idx")
    if found.shape != (inputs,) or not 0 <= found.min() <= found.max() < count:
        raise matrix.wrong(
            "weight_g_idx", "it names groups that there are not", f"{inputs} numbers from 0 to {count - 1}"
        )
    return found

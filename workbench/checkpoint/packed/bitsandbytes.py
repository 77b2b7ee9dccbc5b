"""bitsandbytes: 4-bit codes with a scale for each block of weights, which may be an 8-bit code again; and LLM.int8.

In 4 bits the weights, in the order of their rows, are blocks of 64: `weight` has two codes in a byte, the first in the
high half, that number the entries of `quant_map`; `absmax` scales each block. With double quantization `absmax` holds
bytes that number the entries of `nested_quant_map`, scaled by `nested_absmax` for each block of them, plus an offset.
LLM.int8 keeps INT8 and the largest value of each row: W = q SCB / 127.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import numpy as np

from workbench.checkpoint.packed import codes
from workbench.checkpoint.packed.layout import Packed, Weights
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError

STATE = "quant_state.bitsandbytes__"
BLOCK = 64  # weights that share a scale, unless the state says otherwise
LONGEST_STATE = 4096  # bytes


@dataclass(frozen=True)
class FourBit(Packed):
    """A matrix [out, in] in NF4 or FP4. `nested`: (block of scales, offset), where scales are codes too."""

    block: int
    nested: tuple[int, float] | None

    NEEDED = ("weight", "weight.absmax", "weight.quant_map")
    OPTIONAL = ("weight.nested_absmax", "weight.nested_quant_map")
    SCALES = ("weight.absmax", "weight.nested_absmax")

    @property
    def code_bits(self) -> float:
        return 4

    @property
    def per_scale(self) -> int:
        return self.block

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> FourBit:
        kind = next((part for part in parts if part.startswith(f"weight.{STATE}")), None)
        if kind is None:
            raise WorkbenchError(name, f"it has no {STATE}..., which says its shape")
        made = cls(name, parts, (), "", 0, None)
        state = made._state(kind)
        shape: Any = state.get("shape")
        block: Any = state.get("blocksize")
        if not _whole(block) or not isinstance(shape, list) or len(shape) != 2 or not all(map(_whole, shape)):
            raise made.wrong(kind, f"it says shape {shape!r:.40} and blocks of {block!r:.20}", "whole numbers")
        blocks = -(-prod(shape) // block)
        nested = None
        if "weight.nested_absmax" in parts:
            of_scales, offset = state.get("nested_blocksize"), state.get("nested_offset")
            if (
                type(of_scales) is not int
                or of_scales < 1
                or not isinstance(offset, int | float)
                or not isfinite(offset)
            ):
                raise made.wrong(kind, f"it says blocks of {of_scales!r:.20} scales and an offset {offset!r:.20}")
            made.check("weight.nested_absmax", (-(-blocks // of_scales),), ("F32",))
            made._check_map("weight.nested_quant_map", 256)
            nested = (of_scales, float(offset))
        made._check_map("weight.quant_map", 16)
        made._check_settings(kind, settings)
        scheme = kind.removeprefix(f"weight.{STATE}").upper()[:8] + (", scales in 8 bits" if nested else "")
        made = cls(name, parts, tuple(shape), scheme, block, nested)
        if parts["weight"].params != -(-prod(shape) // 2) or parts["weight.absmax"].params != blocks:
            found = f"{parts['weight'].params:,} bytes and {parts['weight.absmax'].params:,} scales for {shape}"
            raise made.wrong("weight", f"it has {found}", f"{-(-prod(shape) // 2):,} and {blocks:,}")
        return made

    @classmethod
    def sketch(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> FourBit:
        kind = str(settings.get("bnb_4bit_quant_type", "4-bit")).upper()[:8]
        return cls(name, parts, (2, parts["weight"].params), kind, BLOCK, None)

    def read(self, rows: slice) -> Weights:
        inputs = self.shape[1]
        first, end, _ = rows.indices(self.shape[0])
        start, stop = first * inputs, end * inputs
        raw = self.integers("weight").view(np.uint8).reshape(-1)[start // 2 : -(-stop // 2)]
        q = codes.nibbles(raw, high_first=True)[start % 2 :][: stop - start]
        block = np.arange(start, stop) // self.block
        weights = self.floats("weight.quant_map")[q]
        weights *= self._scales()[block]
        return weights.reshape(end - first, inputs)

    def _scales(self) -> Weights:
        """[blocks]"""
        if self.nested is None:
            return self.floats("weight.absmax").reshape(-1)
        size, offset = self.nested
        coded = self.integers("weight.absmax").reshape(-1)
        own = self.floats("weight.nested_absmax").reshape(-1)[np.arange(len(coded)) // size]
        return np.asarray(self.floats("weight.nested_quant_map")[coded] * own + offset, np.float32)

    def _check_map(self, part: str, entries: int) -> None:
        """Raise unless a table has an entry for every code."""
        if part not in self.parts:
            raise self.wrong(part, "it is missing")
        self.check(part, (entries,), ("F32",))

    def _check_settings(self, kind: str, settings: dict[str, Any]) -> None:
        """Raise if the config speaks of another format than this one."""
        if settings.get("load_in_8bit") and settings.get("load_in_4bit"):
            raise WorkbenchError(self.name, "config.json says load_in_4bit and load_in_8bit", allowed="one of them")
        if settings.get("load_in_8bit"):
            raise self.wrong(kind, "it is of 4 bits, and config.json says load_in_8bit")
        said, own = settings.get("bnb_4bit_quant_type"), kind.removeprefix(f"weight.{STATE}")
        if isinstance(said, str) and said.lower() != own.lower():
            raise self.wrong(kind, f"it is {own[:20]}, and config.json says bnb_4bit_quant_type {said!r:.20}")

    def _state(self, part: str) -> dict[str, Any]:
        small = self.parts[part].encoding == "U8" and self.parts[part].nbytes <= LONGEST_STATE
        raw = self.integers(part) if small else np.zeros(0, np.uint8)
        try:
            found = json.loads(raw.tobytes())
        except (ValueError, RecursionError) as reason:
            raise self.wrong(part, f"it cannot be read ({reason!s:.60})", "JSON as bytes") from reason
        return found if isinstance(found, dict) else {}


def _whole(number: object) -> bool:
    return type(number) is int and number > 0


@dataclass(frozen=True)
class Int8(Packed):
    """A matrix [out, in] of LLM.int8."""

    NEEDED = ("weight", "SCB")
    OPTIONAL = ("weight_format",)
    SCALES = ("SCB",)

    @property
    def code_bits(self) -> float:
        return 8

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Int8:
        shape = parts["weight"].shape
        made = cls(name, parts, shape, "LLM.int8")
        if len(shape) != 2:
            raise made.wrong("weight", f"it is {list(shape)}", "a matrix")
        if settings.get("load_in_4bit"):
            raise made.wrong("weight", "it is of 8 bits, and config.json says load_in_4bit")
        made.check("weight", shape, ("I8",))
        made.check("SCB", shape[:1], ("F32",))
        return made

    def read(self, rows: slice) -> Weights:
        weights = self.integers("weight")[rows].astype(np.float32)
        weights *= self.floats("SCB")[rows, None] / 127
        return weights

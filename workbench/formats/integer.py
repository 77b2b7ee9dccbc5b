"""INT8 and INT4: round to the nearest step, with a scale for each group of inputs; no calibration.

The baseline that cleverer methods on the same grid (GPTQ, AWQ) are held against.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.formats.base import FLOAT16, FLOAT32, INT8, UINT8, Format, Layout, Shape, Weights

RUNS_ON = ("vLLM", "transformers")


@dataclass(frozen=True)
class Grouped(Format):
    """Groups of `group` weights along the inputs; the last one of a row may be shorter."""

    family = "integer"

    group: int = 64

    def groups(self, cols: int) -> int:
        return -(-cols // self.group)


@dataclass(frozen=True)
class Int8(Grouped):
    """W = scale · code, scale = max|group| / 127 in float16, codes -127..127 in a byte each."""

    def layout(self, shape: Shape) -> Layout:
        return {"codes": (INT8, shape), "scale": (FLOAT16, (shape[0], self.groups(shape[1])))}

    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]:
        cols = weights.shape[1]
        groups = _split(weights, self.group)
        scale = (np.maximum(groups.max(axis=2), -groups.min(axis=2)) / 127).astype(np.float16)
        codes = _steps(groups, scale)
        np.clip(codes, -127, 127, out=codes)
        return {"codes": _join(codes.astype(np.int8), cols), "scale": scale}

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        groups = _split(parts["codes"].astype(np.float32), self.group)
        groups *= parts["scale"].astype(np.float32)[:, :, None]
        return _join(groups, shape[1])


@dataclass(frozen=True)
class Int8Row(Format):
    """W = scale · code, scale = max|row| / 127 in float32, codes -127..127: what is multiplied with 8-bit activations.

    One scale for a whole row can be taken out of the sum over the inputs, so the sum is one of integers.
    """

    family = "integer"

    def layout(self, shape: Shape) -> Layout:
        return {"codes": (INT8, shape), "scale": (FLOAT32, (shape[0], 1))}

    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]:
        scale = np.maximum(weights.max(axis=1, keepdims=True), -weights.min(axis=1, keepdims=True)) / np.float32(127)
        codes = _steps(weights[:, None, :], scale)[:, 0]
        np.clip(codes, -127, 127, out=codes)
        return {"codes": codes.astype(np.int8), "scale": scale}

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        weights = parts["codes"].astype(np.float32)
        weights *= parts["scale"]
        return weights


@dataclass(frozen=True)
class Int4(Grouped):
    """W = scale · (code - zero), scale = (max - min) / 15 of the group and 0, in float16; codes and zeros 0..15.

    Two codes share a byte, the first in its low half, and so do two zeros; each row begins a new byte.
    """

    def layout(self, shape: Shape) -> Layout:
        rows, cols = shape
        groups = self.groups(cols)
        return {
            "codes": (UINT8, (rows, -(-cols // 2))),
            "scale": (FLOAT16, (rows, groups)),
            "zero": (UINT8, (rows, -(-groups // 2))),
        }

    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]:
        groups = _split(weights, self.group)
        low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
        scale = ((high - low) / 15).astype(np.float16)
        zero = np.clip(_steps(-low[:, :, None], scale), 0, 15)
        codes = _steps(groups, scale)
        codes += zero
        np.clip(codes, 0, 15, out=codes)
        return {
            "codes": _pack(_join(codes.astype(np.uint8), weights.shape[1])),
            "scale": scale,
            "zero": _pack(zero[:, :, 0].astype(np.uint8)),
        }

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        cols = shape[1]
        groups = _split(_unpack(parts["codes"], cols), self.group)
        groups -= _unpack(parts["zero"], self.groups(cols))[:, :, None]
        groups *= parts["scale"].astype(np.float32)[:, :, None]
        return _join(groups, cols)


def _split(matrix: np.ndarray, group: int) -> np.ndarray:
    """[rows, cols] -> [rows, groups, group]; zeros fill a short last group, which changes no scale."""
    short = -matrix.shape[1] % group
    if short:
        matrix = np.pad(matrix, ((0, 0), (0, short)))
    return matrix.reshape(matrix.shape[0], -1, group)


def _join(groups: np.ndarray, cols: int) -> np.ndarray:
    """[rows, groups, group] -> [rows, cols], without what `_split` filled in."""
    return np.ascontiguousarray(groups.reshape(groups.shape[0], -1)[:, :cols])


def _steps(groups: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`groups` [rows, groups, n] in whole steps of their `scale` [rows, groups], ties to even; 0 where it is 0."""
    step = scale.astype(np.float32)
    step[step == 0] = np.inf
    steps = groups / step[:, :, None]
    return np.rint(steps, out=steps)


def _pack(codes: np.ndarray) -> np.ndarray:
    """uint8 [rows, n] of 0..15 -> uint8 [rows, ceil(n / 2)]."""
    packed = codes[:, 0::2].copy()
    packed[:, : codes.shape[1] // 2] |= codes[:, 1::2] << 4
    return packed


def _unpack(packed: np.ndarray, count: int) -> Weights:
    """uint8 [rows, ceil(count / 2)] -> float32 [rows, count]."""
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.float32)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return codes[:, :count]


def _int8(name: str, group: int, summary: str) -> Int8:
    return Int8(name, 8 + 16 / group, summary, RUNS_ON, group=group)


def _int4(name: str, group: int, summary: str) -> Int4:
    return Int4(name, 4 + (16 + 4) / group, summary, RUNS_ON, group=group)


FORMATS = (
    _int8("INT8-g32", 32, "8-bit steps, a scale for each 32 inputs."),
    _int8("INT8", 64, "8-bit steps, a scale for each 64 inputs: hard to tell from the original."),
    _int8("INT8-g128", 128, "8-bit steps, a scale for each 128 inputs."),
    Int8Row("INT8-row", 8.0, "8-bit steps, a scale for each output: the weights of a W8A8 checkpoint.", RUNS_ON),
    _int4("INT4-g32", 32, "4-bit steps, a scale and zero for each 32 inputs: better and larger than INT4."),
    _int4("INT4", 64, "4-bit steps, a scale and zero for each 64 inputs: the baseline for GPTQ and AWQ."),
    _int4("INT4-g128", 128, "4-bit steps, a scale and zero for each 128 inputs: the size GPTQ and AWQ publish."),
)

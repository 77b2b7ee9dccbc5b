"""FP8 (E4M3) with float32 scales: one for each output row, or one for each tile of 128 by 128 weights."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from workbench.formats.base import FLOAT32, UINT8, Format, Layout, Shape, Weights

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST = np.float32(448)  # the largest number of E4M3
TILE = 128  # rows and columns that share a scale, as in DeepSeek-V3's checkpoints
VALUES = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)  # what each code stands for


@dataclass(frozen=True)
class Fp8(Format):
    """W = scale · code, scale = max|row| / 448, codes rounded to the nearest, ties to even."""

    family = "fp8"

    def layout(self, shape: Shape) -> Layout:
        return {"codes": (UINT8, shape), "scale": (FLOAT32, (shape[0], 1))}

    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]:
        peak = np.maximum(weights.max(axis=1, keepdims=True), -weights.min(axis=1, keepdims=True))
        scale = peak / LARGEST
        return {"codes": _codes(weights, scale), "scale": scale}

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        weights = VALUES[parts["codes"]]
        weights *= parts["scale"]
        return weights


@dataclass(frozen=True)
class Fp8Block(Format):
    """The same with the greatest magnitude of a tile of `TILE` rows and columns; tiles at the edges are smaller."""

    family = "fp8"

    def layout(self, shape: Shape) -> Layout:
        return {"codes": (UINT8, shape), "scale": (FLOAT32, (-(-shape[0] // TILE), -(-shape[1] // TILE)))}

    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]:
        rows, cols = (np.arange(0, size, TILE) for size in weights.shape)
        peak = np.maximum.reduceat(np.maximum.reduceat(np.abs(weights), rows, axis=0), cols, axis=1)
        scale = (peak / LARGEST).astype(np.float32)
        return {"codes": _codes(weights, _spread(scale, weights.shape)), "scale": scale}

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        weights = VALUES[parts["codes"]]
        weights *= _spread(parts["scale"], shape)
        return weights


def _codes(weights: Weights, scale: Weights) -> np.ndarray:
    scaled = weights / np.where(scale > 0, scale, 1)
    np.clip(scaled, -LARGEST, LARGEST, out=scaled)  # a scale near zero is coarse: past 464 lies NaN
    return scaled.astype(E4M3).view(np.uint8)


def _spread(scale: Weights, shape: tuple[int, ...]) -> Weights:
    """The scale of each weight, from those of the tiles."""
    return scale.repeat(TILE, axis=0)[: shape[0]].repeat(TILE, axis=1)[:, : shape[1]]


RUNS_ON = ("vLLM", "transformers")
FP8 = Fp8("FP8", 8.0, "8-bit floats: close to the original, what recent NVIDIA GPUs compute in.", RUNS_ON)
BLOCK = Fp8Block(
    "FP8-block", 8 + 32 / TILE**2, "The same with a scale for each tile of 128 by 128.", RUNS_ON, row_multiple=TILE
)

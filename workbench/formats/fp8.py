"""FP8 (E4M3) with one float32 scale for each output row: the weights of an "FP8 dynamic" checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from workbench.formats.base import FLOAT32, UINT8, Format, Layout, Shape, Weights

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST = np.float32(448)  # the largest number of E4M3
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
        scaled = weights / np.where(scale > 0, scale, 1)
        np.clip(scaled, -LARGEST, LARGEST, out=scaled)  # a scale near zero is coarse: past 464 lies NaN
        return {"codes": scaled.astype(E4M3).view(np.uint8), "scale": scale}

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        weights = VALUES[parts["codes"]]
        weights *= parts["scale"]
        return weights


FP8 = Fp8(
    "FP8", 8.0, "8-bit floats: close to the original, what recent NVIDIA GPUs compute in.", ("vLLM", "transformers")
)

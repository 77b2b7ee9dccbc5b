"""Plain floating-point numbers: the reference, and what a matrix falls back to that fits nothing smaller."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from workbench.formats.base import Format, Layout, Shape, Weights

EVERYWHERE = ("llama.cpp", "Ollama", "LM Studio", "transformers", "vLLM", "TGI")


@dataclass(frozen=True)
class Float(Format):
    """Every weight by itself, rounded to the nearest number of the type, ties to even."""

    family = "float"

    dtype: np.dtype = field(kw_only=True)

    def layout(self, shape: Shape) -> Layout:
        return {"values": (self.dtype, shape)}

    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]:
        return {"values": weights.astype(self.dtype)}

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        return parts["values"].astype(np.float32)


def _float(name: str, dtype: type, summary: str) -> Float:
    info = ml_dtypes.finfo(dtype)
    return Float(name, float(info.bits), summary, EVERYWHERE, largest=float(info.max), dtype=np.dtype(dtype))


F32 = _float("F32", np.float32, "Full single precision: twice the bytes most models are published in, and no gain.")
F16 = _float("F16", np.float16, "Half precision: nearly exact for weights of ordinary size, and runs everywhere.")
BF16 = _float("BF16", ml_dtypes.bfloat16, "What most models are published in: half the bytes of F32, all of its range.")

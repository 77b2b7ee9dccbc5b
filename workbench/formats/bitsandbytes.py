"""NF4, FP4 and LLM.int8 as bitsandbytes stores them, by its own functions, on the CPU.

This is what `Linear4bit` (blocks of 64, no double quantization) and `Linear8bitLt` keep of a weight, and
what they multiply with; transformers loads a model so when it is given a `BitsAndBytesConfig`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from workbench.exceptions import need
from workbench.formats.base import FLOAT32, INT8, UINT8, Format, Layout, Shape, Weights

RUNS_ON = ("transformers", "vLLM", "TGI")
BLOCK = 64


@dataclass(frozen=True)
class FourBit(Format):
    """4-bit codes and a float32 absolute maximum for each 64 weights of the matrix, read row after row.

    Blocks do not stop at the end of a row, but 64 rows are always whole blocks: hence `row_multiple`.
    """

    family = "bitsandbytes"

    def layout(self, shape: Shape) -> Layout:
        count = shape[0] * shape[1]
        return {"codes": (UINT8, (-(-count // 2),)), "absmax": (FLOAT32, (-(-count // BLOCK),))}

    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]:
        codes, state = _functional().quantize_4bit(_tensor(weights), blocksize=BLOCK, quant_type=self.name.lower())
        return {"codes": codes.numpy().ravel(), "absmax": state.absmax.numpy()}

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        functional, codes = _functional(), _tensor(parts["codes"])
        # As one long row: the library has a kernel for an even number of columns only.
        state = functional.QuantState(
            absmax=_tensor(parts["absmax"]),
            shape=(1, 2 * codes.numel()),
            dtype=need("torch").float32,
            blocksize=BLOCK,
            quant_type=self.name.lower(),
        )
        weights = functional.dequantize_4bit(codes.view(-1, 1), state)
        return weights.numpy().ravel()[: shape[0] * shape[1]].reshape(shape)


@dataclass(frozen=True)
class Int8(Format):
    """8-bit codes and the absolute maximum of each row, in float32; weights pass through float16, as in the library."""

    family = "bitsandbytes"

    def layout(self, shape: Shape) -> Layout:
        return {"codes": (INT8, shape), "absmax": (FLOAT32, (shape[0],))}

    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]:
        codes, absmax, _ = _functional().int8_vectorwise_quant(_tensor(weights).half())
        return {"codes": codes.numpy(), "absmax": absmax.numpy()}

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        return _functional().int8_vectorwise_dequant(_tensor(parts["codes"]), _tensor(parts["absmax"])).numpy()


def library() -> ModuleType:
    """bitsandbytes, without its warnings of a cast in every layer of every pass, and of an optional kernel from a hub.

    Raises:
        MissingExtra: it or torch is not installed.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    need("torch")
    return need("bitsandbytes")


def _functional() -> Any:
    return library().functional


def _tensor(array: np.ndarray) -> Any:
    """`array` as a torch tensor over the same memory; torch warns about memory that is read-only, so that is copied."""
    return need("torch").from_numpy(array if array.flags.writeable else array.copy())


FORMATS = (
    Int8("LLM.int8", 8.0, "8 bits and one scale a row: close to the original, for GPUs.", RUNS_ON),
    FourBit(
        "NF4", 4.5, "4 bits on a grid for bell curves: QLoRA's format, made in seconds.", RUNS_ON, row_multiple=BLOCK
    ),
    FourBit("FP4", 4.5, "4-bit floats: NF4's older sibling, usually worse.", RUNS_ON, row_multiple=BLOCK),
)

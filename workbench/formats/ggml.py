"""The types of ggml, as llama.cpp, Ollama and their relatives store them in GGUF files.

The codecs are ggml's own kernels (`formats.kernels`); they release the GIL. ggml trusts its caller: a row
that is not whole blocks, a NaN or a missing importance garbles the result or ends the process, and so do two
first calls at once. So everything is checked before a call.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from workbench.exceptions import WorkbenchError
from workbench.formats import kernels
from workbench.formats.base import UINT8, Format, Layout, Shape, Weights
from workbench.formats.floats import F16

# One thread a call, which libgguf looks up at each: callers work on runs of rows in threads of their own, and
# each of those would start one for every core. Set here, before there are threads; a value of the user's stays.
os.environ.setdefault("LIBGGUF_NUM_THREADS", "1")

RUNS_ON = ("llama.cpp", "Ollama", "LM Studio")


@dataclass(frozen=True)
class Ggml(Format):
    """A block type of ggml.

    Attributes:
        number: its number in ggml's enumeration (not the file type of llama.cpp, which is another one).
        block: weights in a block; blocks run along the inputs.
        block_bytes: bytes of a block.
    """

    family = "ggml"

    number: int = 0
    block: int = 0
    block_bytes: int = 0

    def used_for(self, shape: Shape) -> Format:
        """This type if rows are whole blocks, else llama.cpp's next choice, and F16 where nothing else fits.

        llama.cpp goes from the types in blocks of 256 to ones in blocks of 32, then to F16
        (`tensor_type_fallback` in its src/llama-quant.cpp). For the types in smaller blocks it has no
        fallback: its quantizer stops. F16 is what a file that holds such a matrix can have.
        """
        if shape[1] % self.block == 0:
            return self
        fallback = FALLBACK.get(self.name)
        return BY_NAME[fallback].used_for(shape) if fallback else F16

    def layout(self, shape: Shape) -> Layout:
        rows, cols = shape
        if cols % self.block:
            raise WorkbenchError(
                self.name,
                f"rows of {cols} weights are not whole blocks of {self.block}",
                allowed=f"a multiple of {self.block}",
                do=f"store this matrix as {self.used_for(shape)}, as llama.cpp does: used_for({shape})",
            )
        return {"blocks": (UINT8, (rows, cols // self.block * self.block_bytes))}

    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]:
        encode = _prepared_encoder(self)
        rows, cols = weights.shape
        blocks = np.empty((rows, cols // self.block * self.block_bytes), np.uint8)
        encode(weights, blocks, None if self.importance == "unused" else importance)
        return {"blocks": blocks}

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        return decode_blocks(self.name, parts["blocks"], shape[1])


_FIRST_USE = threading.Lock()
_prepared: dict[str, kernels.Encode] = {}


def _prepared_encoder(type: Ggml) -> kernels.Encode:
    """Encode one block alone before several threads may: ggml builds a type's tables on the first use.

    libgguf leaves out the lock that ggml has there, and two threads building one table end the process.
    It takes a second or less, and up to 15 s for IQ2_S and IQ1_S.
    """
    if type.name in _prepared:
        return _prepared[type.name]
    with _FIRST_USE:
        encode = kernels.encoder(type.name, type.number, type.block, type.block_bytes)
        one, blocks = np.ones((1, type.block), np.float32), np.empty((1, type.block_bytes), np.uint8)
        encode(one, blocks, one[0])
        return _prepared.setdefault(type.name, encode)


# What llama.cpp stores instead where rows are not whole blocks of 256; all of these have blocks of 32.
FALLBACK = {
    "Q6_K": "Q8_0",
    "Q5_K": "Q5_1",
    "Q4_K": "Q5_0",
    **dict.fromkeys(("Q3_K", "Q2_K", "TQ2_0", "TQ1_0"), "Q4_0"),
    **dict.fromkeys(("IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"), "IQ4_NL"),
}
IMPORTANCE: dict[str, Literal["unused", "required"]] = {  # the others can use it: "optional"
    **dict.fromkeys(("Q8_0", "NVFP4", "MXFP4", "TQ2_0", "TQ1_0", "Q1_0"), "unused"),
    **dict.fromkeys(("IQ2_XS", "IQ2_XXS", "IQ1_S"), "required"),
}


def _type(name: str, number: int, block: int, block_bytes: int, summary: str) -> Ggml:
    return Ggml(
        name,
        bits=8 * block_bytes / block,
        summary=summary,
        runs_on=RUNS_ON,
        importance=IMPORTANCE.get(name, "optional"),
        number=number,
        block=block,
        block_bytes=block_bytes,
        largest=32768.0,  # a fitted minimum may lie past the least weight, and float16 must hold it
        encodable=name != "IQ1_M",  # two builds of ggml store different bytes for the same weights
    )


TYPES = (
    _type("Q8_0", 8, 32, 34, "8 bits: hard to tell from the original; the choice for math and code."),
    _type("Q6_K", 14, 256, 210, "6 bits: very close to the original."),
    _type("Q5_1", 7, 32, 24, "5 bits, older: a scale and a minimum for each block of 32."),
    _type("Q5_K", 13, 256, 176, "5 bits: close to the original, a little larger than Q4_K."),
    _type("Q5_0", 6, 32, 22, "5 bits, older: one scale for each block of 32."),
    _type("Q4_1", 3, 32, 20, "4 bits, older: a scale and a minimum for each block of 32."),
    _type("Q4_K", 12, 256, 144, "4 bits: the usual balance of size and quality; start here."),
    _type("Q4_0", 2, 32, 18, "4 bits, older: one scale for each block of 32; fast on phones and ARM."),
    _type("IQ4_NL", 20, 32, 18, "4 bits on an uneven grid that follows the weights' bell curve."),
    _type("NVFP4", 40, 64, 36, "4-bit floats, a float8 scale for each 16: made for NVIDIA's Blackwell."),
    _type("IQ4_XS", 23, 256, 136, "IQ4_NL with smaller scales: a little under Q4_K in size."),
    _type("MXFP4", 39, 32, 17, "4-bit floats, a power of two for each 32: what gpt-oss is published in."),
    _type("Q3_K", 11, 256, 110, "3 bits: visibly worse than 4, for a model that would not fit otherwise."),
    _type("IQ3_S", 21, 256, 110, "3 bits by a table of patterns: better than Q3_K, slower to make."),
    _type("IQ3_XXS", 18, 256, 98, "3 bits by a smaller table of patterns."),
    _type("Q2_K", 10, 256, 84, "2 to 3 bits: a clear loss; large models bear it better."),
    _type("IQ2_S", 22, 256, 82, "2.5 bits by a table of patterns."),
    _type("IQ2_XS", 17, 256, 74, "2.3 bits by a table of patterns."),
    _type("IQ2_XXS", 16, 256, 66, "2 bits by a table of patterns."),
    _type("TQ2_0", 35, 256, 66, "-1, 0 or 1, simply packed: only for models trained so (BitNet)."),
    _type("IQ1_M", 29, 256, 56, "1.75 bits: a last resort. Read from files, but not made here."),
    _type("TQ1_0", 34, 256, 54, "-1, 0 or 1, five in a byte: only for models trained so (BitNet)."),
    _type("IQ1_S", 19, 256, 50, "1.6 bits: the smallest, rarely coherent."),
    _type("Q1_0", 41, 128, 18, "The sign, and one scale for each 128: only for models trained so."),
)
BY_NAME = {type.name: type for type in TYPES}

PLAIN = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


def decode_blocks(type_name: str, raw: NDArray[np.uint8], cols: int) -> Weights:
    """The float32 weights [rows, cols] in the rows `raw` uint8 [rows, row bytes] of a GGUF file.

    Raises:
        WorkbenchError: a type that cannot be decoded, or rows of another length than the type has for `cols`.
    """
    if type_name in PLAIN:
        block, block_bytes = 1, PLAIN[type_name].itemsize
    elif type_name in BY_NAME:
        block, block_bytes = BY_NAME[type_name].block, BY_NAME[type_name].block_bytes
    else:
        raise WorkbenchError(type_name, "it cannot be decoded", allowed=", ".join([*PLAIN, *BY_NAME]))
    row_bytes, rest = divmod(cols * block_bytes, block)
    if raw.dtype != np.uint8 or raw.ndim != 2 or cols <= 0 or rest or raw.shape[1] != row_bytes:
        raise WorkbenchError(
            f"rows of {type_name}",
            f"{raw.dtype} of shape {raw.shape} for {cols} weights in a row",
            allowed=f"uint8 [rows, bytes], {block_bytes} bytes for each {block} weights",
        )
    raw = np.ascontiguousarray(raw)
    if type_name in PLAIN:
        return raw.view(PLAIN[type_name]).astype(np.float32)
    import libgguf

    weights = np.empty((len(raw), cols), np.float32)
    libgguf.dequantize_rows_into_raw(BY_NAME[type_name].number, raw, weights, len(raw), cols)
    return weights

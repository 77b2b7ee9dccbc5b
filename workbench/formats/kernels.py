"""ggml's encoders: libgguf's build of them, or xllamacpp's where that is installed, which is up to twice as fast.

Both are the same C code. xllamacpp's is only called for types in which it gave the same bytes for a sample first.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.formats.base import Weights

FASTER = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # the others are not
LIBRARIES = (".so", ".pyd")
Encode = Callable[[Weights, NDArray[np.uint8], Weights | None], None]


@cache
def encoder(name: str, number: int, block: int, block_bytes: int) -> Encode:
    """What encodes a type: called with weights [rows, cols], the blocks to fill, and an importance [cols] or None.

    Args:
        name: of the type; `number` is ggml's for it.
        block: weights of a block; `block_bytes`: its bytes.
    """
    own, other = _by_libgguf(number), _by_xllamacpp(number) if name in FASTER else None
    return other if other is not None and _agree(own, other, block, block_bytes) else own


def _by_libgguf(number: int) -> Encode:
    import libgguf

    def encode(weights: Weights, blocks: NDArray[np.uint8], importance: Weights | None) -> None:
        libgguf.quantize_rows_into_raw(number, weights, blocks, *weights.shape, importance)

    return encode


def _by_xllamacpp(number: int) -> Encode | None:
    quantize = _quantize_chunk()
    if quantize is None:
        return None

    def encode(weights: Weights, blocks: NDArray[np.uint8], importance: Weights | None) -> None:
        weights = np.ascontiguousarray(weights, np.float32)
        importance = None if importance is None else np.ascontiguousarray(importance, np.float32)
        given = None if importance is None else importance.ctypes.data
        quantize(number, weights.ctypes.data, blocks.ctypes.data, 0, *weights.shape, given)

    return encode


@cache
def _quantize_chunk() -> Callable[..., int] | None:
    """`ggml_quantize_chunk` of xllamacpp's library (ggml/include/ggml.h), which is called without Python's lock."""
    try:
        found = importlib.util.find_spec("xllamacpp")
        places = found.submodule_search_locations if found is not None else None
        files = [file for place in places or () for file in Path(place).glob("xllamacpp*") if file.suffix in LIBRARIES]
        quantize = ctypes.CDLL(str(files[0])).ggml_quantize_chunk
    except (ImportError, IndexError, OSError, AttributeError):
        return None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    quantize.restype = ctypes.c_size_t
    return quantize


def _agree(one: Encode, other: Encode, block: int, block_bytes: int) -> bool:
    """Whether both give the same bytes for a sample, with an importance and without."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((16, 2 * block)).astype(np.float32)
    for importance in (None, random.uniform(0.1, 4, 2 * block).astype(np.float32)):
        made = [np.zeros((16, 2 * block_bytes), np.uint8) for _ in range(2)]
        for encode, blocks in zip((one, other), made, strict=True):
            encode(weights, blocks, importance)
        if not np.array_equal(made[0], made[1]):
            return False
    return True

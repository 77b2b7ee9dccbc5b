"""An independent build of ggml to hold the codecs against: the C functions that xllamacpp's library exports."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np


@cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    library.ggml_row_size.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def row_size(number: int, cols: int) -> int:
    return _library().ggml_row_size(number, cols)


def quantize(number: int, weights: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """What llama.cpp stores for `weights` float32 [rows, cols] in the ggml type of that number: uint8 [rows, bytes]."""
    rows, cols = weights.shape
    blocks = np.zeros((rows, row_size(number, cols)), np.uint8)
    given = None if importance is None else importance.ctypes.data
    used = _library().ggml_quantize_chunk(number, weights.ctypes.data, blocks.ctypes.data, 0, rows, cols, given)
    assert used == blocks.nbytes
    return blocks


def dequantize(name: str, blocks: np.ndarray, cols: int) -> np.ndarray:
    """The weights that ggml reads from `blocks`."""
    decode = getattr(_library(), "dequantize_row_" + name.lower().replace("_k", "_K"))
    decode.argtypes, decode.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    weights = np.zeros((len(blocks), cols), np.float32)
    decode(blocks.ctypes.data, weights.ctypes.data, weights.size)
    return weights

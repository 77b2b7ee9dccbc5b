"""The values of one tensor as float32: just the rows asked for are read, whatever the encoding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError
from workbench.formats import ggml

Weights = NDArray[np.float32]

PLAIN = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
BLOCK = 128  # rows and columns that share a scale in DeepSeek's FP8


def read(info: TensorInfo, rows: slice | None = None) -> Weights:
    """The values of `info`, or of `rows` along its first axis, as float32; no scale is applied.

    Raises WorkbenchError when the tensor cannot be decoded or the file has changed since it was opened.
    """
    if info.problem:
        raise WorkbenchError(f"{info.file.name}, tensor {info.name!r}", info.problem)
    first, count, shape = _extent(info, rows)
    if info.packed:
        return info.packed.read(slice(first, first + count)).reshape(shape)
    row_bytes = info.nbytes // info.shape[0] if info.shape and info.shape[0] else info.nbytes
    raw = bytes_at(info, first * row_bytes, count * row_bytes)
    if info.encoding in PLAIN:
        return raw.view(PLAIN[info.encoding]).astype(np.float32).reshape(shape)
    cols = info.shape[-1]
    return ggml.decode_blocks(info.encoding, raw.reshape(-1, _row_bytes(info)), cols).reshape(shape)


def _extent(info: TensorInfo, rows: slice | None) -> tuple[int, int, tuple[int, ...]]:
    """(first row, rows, shape of the result) of a slice of the first axis; a scalar has one row."""
    if rows is None or not info.shape:
        return 0, info.shape[0] if info.shape else 1, info.shape
    first, end, step = rows.indices(info.shape[0])
    if step != 1:
        raise WorkbenchError(f"tensor {info.name!r}", f"rows with a step of {step}", allowed="a slice without a step")
    count = max(0, end - first)
    return first, count, (count, *info.shape[1:])


def _row_bytes(info: TensorInfo) -> int:
    return info.nbytes * info.shape[-1] // info.params if info.params else 1


def bytes_at(info: TensorInfo, first: int, count: int) -> NDArray[np.uint8]:
    """`count` stored bytes of a tensor, from its byte `first`."""
    raw = np.empty(count, np.uint8)
    view, done = raw.data, 0
    try:
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.offset + first)
            while done < count and (read := file.readinto(view[done:])):
                done += read
    except OSError as reason:
        raise _changed(info, f"it cannot be read any more ({reason})") from reason
    if done < count:
        raise _changed(info, f"{count:,} bytes were expected and {done:,} are there: the file was changed")
    return raw


def _changed(info: TensorInfo, found: str) -> WorkbenchError:
    return WorkbenchError(f"{info.file}, tensor {info.name!r}", found, do="load the checkpoint again")


def digest(info: TensorInfo) -> str:
    """A hash (blake2b, 128 bit, hex) of the stored bytes, read in pieces of 4 MiB."""
    total = hashlib.blake2b(f"{info.encoding} {info.shape}".encode(), digest_size=16)
    for part in info.stored:
        for piece in _pieces(part, 4 << 20):
            total.update(piece.data)
    return total.hexdigest()


def _pieces(info: TensorInfo, size: int) -> Iterator[NDArray[np.uint8]]:
    for first in range(0, info.nbytes, size):
        yield bytes_at(info, first, min(size, info.nbytes - first))


def apply_scale(
    weights: Weights,
    rows: slice | None,
    shape: tuple[int, ...],
    scale: Weights,
    name: str,
    tile: tuple[int, int] | None = None,
) -> Weights:
    """FP8 codes times their scale: weights[i, j] * scale[i // b0, j // b1].

    Args:
        weights: the codes of `rows` (along the first axis) of a tensor of `shape`, as float32; changed in place.
        scale: of one value, or with as many axes as the weights: along each axis one value for all,
            one for each index, or one for each block (DeepSeek's layout; the last block may be short).
        tile: rows and columns of a block; by default 128 x 128, or what divides an axis evenly.

    Both `weight_scale` (compressed-tensors, vLLM) and, despite its name, `weight_scale_inv`
    (DeepSeek) multiply.
    """
    if scale.size == 1:
        weights *= scale.reshape(())
        return weights
    found = scale.shape
    if scale.ndim == 1 and found == shape[:1]:
        scale = scale.reshape(-1, *(1 for _ in shape[1:]))
    if scale.ndim != len(shape):
        raise _unfit(name, found, shape)
    first, end, _ = (rows or slice(None)).indices(shape[0])
    for axis, (values, size) in enumerate(zip(scale.shape, shape, strict=True)):
        said = tile[axis - len(shape)] if tile and axis >= len(shape) - 2 else None
        block = 1 if values == size else max(1, size) if values == 1 else said or _block(values, size)
        if -(-size // block) != values:
            raise _unfit(name, found, shape)
        indices = np.arange(first, max(first, end)) if axis == 0 else np.arange(size)
        if block < size or axis == 0:
            scale = np.take(scale, indices // block, axis=axis)
    weights *= scale
    return weights


def _block(values: int, size: int) -> int:
    """How many indices share each of so many values: 128, or an even share that kernels can work with."""
    if -(-size // BLOCK) != values and values and size % (16 * values) == 0:
        return size // values
    return BLOCK


def _unfit(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> WorkbenchError:
    return WorkbenchError(
        f"tensor {name!r}",
        f"its scale has shape {list(found)} for weights of shape {list(shape)}",
        allowed=f"one value, one for each row, or one for each block of {BLOCK} x {BLOCK} or of equal size",
    )

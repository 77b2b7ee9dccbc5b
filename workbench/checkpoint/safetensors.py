"""The header of a safetensors file: eight bytes of length, a JSON object, then the tensors' bytes.

https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from workbench.checkpoint import bounded_json, names
from workbench.checkpoint.tensors import (
    MOST_DIMENSIONS,
    MOST_TENSORS,
    Header,
    TensorInfo,
    check_name,
    check_spans,
    malformed,
    opened,
    truncated,
)

LONGEST_HEADER = 16 << 20  # bytes; room for MOST_TENSORS entries
LONGEST_METADATA = 1 << 20  # characters

BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
    **{"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8},
}
READABLE = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0")


def read_header(path: Path) -> Header:
    """Parse and validate the header of `path`; the tensors' bytes are not touched.

    Raises WorkbenchError, naming the file and the tensor, for anything that contradicts the
    format. A tensor of an unknown data type is kept and marked in its `problem`.
    """
    with opened(path) as (file, size):
        return parse_header(path, file, size)


def header_of(tensors: Mapping[str, tuple[str, Sequence[int], int]]) -> bytes:
    """The bytes that stand before the tensors' own in a new file, padded so that those begin at a multiple of 8.

    Args:
        tensors: name -> (data type, shape, where its bytes begin, counted from the end of the header).
    """
    said: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, (kind, shape, start) in tensors.items():
        said[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, start + nbytes_of(kind, shape)]}
    text = json.dumps(said).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def nbytes_of(kind: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this data type and shape."""
    return BITS[kind] * math.prod(shape) // 8


def parse_header(path: Path, file: BinaryIO, size: int) -> Header:
    """`read_header`, from the open beginning of a file of `size` bytes that messages call `path`."""
    start = file.read(8)
    if len(start) < 8:
        raise truncated(path, "the length of the header", 8, size)
    length = int.from_bytes(start, "little")
    if length > size - 8:
        raise truncated(path, f"the header of {length:,} bytes", 8 + length, size)
    if length > LONGEST_HEADER:
        raise malformed(path, f"its header has {length:,} bytes", allowed=f"up to {LONGEST_HEADER:,} bytes")
    walk = bounded_json.Walk(path, bounded_json.decoded(path, file.read(length)))
    tensors: list[TensorInfo] = []
    metadata: dict[str, Any] = {}
    for name in walk.members(MOST_TENSORS):
        if name == "__metadata__":
            metadata = _metadata(path, walk.value(LONGEST_METADATA))
        else:
            tensors.append(_tensor(path, check_name(path, name), walk.value(), 8 + length))
    walk.end()
    check_spans(path, ((t.offset, t.offset + t.nbytes, t.name) for t in tensors), size)
    return Header(tensors, metadata)


def _metadata(path: Path, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise malformed(path, "its __metadata__ is not an object of strings")
    return found


def _tensor(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    """One header entry, {"dtype", "shape", "data_offsets"}, with offsets counted from byte `data` of the file."""
    try:
        dtype, shape, (first, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as reason:
        raise malformed(path, f"the tensor {name!r} has no dtype, shape or pair of data_offsets") from reason
    sizes = [first, end, *(shape if isinstance(shape, list) else [-1])]
    if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in sizes) or len(shape) > MOST_DIMENSIONS:
        raise malformed(path, f"the tensor {name!r} has a dtype, shape or data_offsets of the wrong kind")
    if end < first:
        raise malformed(path, f"the tensor {name!r} ends before it starts: data_offsets {first} and {end}")
    problem = ""
    if dtype not in BITS:
        problem = f"its data type {dtype[:40]!r} is unknown"
    elif (needed := -(-math.prod(shape) * BITS[dtype] // 8)) != end - first:
        raise malformed(
            path,
            f"the tensor {name!r} of {dtype} {shape} needs {needed:,} bytes and its data_offsets span {end - first:,}",
        )
    elif dtype not in READABLE:
        problem = f"its values are stored as {dtype}: codes, not weights that can be read as they are"
    layer, role = names.place(name)
    return TensorInfo(name, tuple(shape), dtype[:40], end - first, path, data + first, layer, role, problem)

"""The header of a GGUF file, versions 2 and 3: metadata, then the tensors' names, shapes, types and offsets.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from workbench.checkpoint import names
from workbench.checkpoint.tensors import (
    MOST_TENSORS,
    Header,
    TensorInfo,
    check_name,
    check_spans,
    malformed,
    opened,
    truncated,
)
from workbench.exceptions import WorkbenchError
from workbench.formats import ggml

# Bounds on what a header may ask for: several times the largest vocabulary and template in use.
MOST_KEYS = 65_536
MOST_ITEMS = 4_000_000  # in all arrays of a file together
LONGEST_STRING = 4 << 20  # bytes
LONGEST_TOKEN = 64 << 10  # bytes
MOST_TEXT = 16 << 20  # bytes of all single strings together
SHORT = 512  # an array of up to this many numbers is read at once; a longer one, and any of strings, on request

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# ggml's number of a type -> (name, values in a block, bytes of a block, why it cannot be read)
_CODES = "it holds whole numbers, not weights"
_TYPES = {
    **{0: ("F32", 1, 4, ""), 1: ("F16", 1, 2, ""), 28: ("F64", 1, 8, ""), 30: ("BF16", 1, 2, "")},
    **{24: ("I8", 1, 1, _CODES), 25: ("I16", 1, 2, _CODES), 26: ("I32", 1, 4, _CODES), 27: ("I64", 1, 8, _CODES)},
    **{kind.number: (kind.name, kind.block, kind.block_bytes, "") for kind in ggml.TYPES},
}
NUMBERS = {name: number for number, (name, *_) in _TYPES.items()}


@dataclass(frozen=True)
class LongArray:
    """An array of the metadata that stays in the file until it is asked for: a vocabulary, its merges, its scores."""

    file: Path
    offset: int
    kind: int  # GGUF's number for the type of the items
    count: int

    def read(self) -> list[Any]:
        """The items: strings or numbers."""
        with opened(self.file) as (file, size):
            cursor = _Cursor(self.file, file, size, self.offset)
            if self.kind == _STRING:
                return [cursor.string(LONGEST_TOKEN, "a string of an array") for _ in range(self.count)]
            return cursor.numbers(self.kind, self.count, "an array")


class _Cursor:
    """A position in the file that never takes a byte that is not there, nor more than was allowed."""

    def __init__(self, path: Path, file: BinaryIO, size: int, at: int = 0) -> None:
        self.path, self.file, self.size, self.at = path, file, size, at
        file.seek(at)

    def take(self, count: int, what: str) -> bytes:
        self.reserve(count, what)
        found = self.file.read(count)
        if len(found) < count:
            raise truncated(self.path, what, self.at + count, self.at + len(found))
        self.at += count
        return found

    def reserve(self, count: int, what: str) -> None:
        """Raise unless `count` bytes follow."""
        if count > self.size - self.at:
            raise truncated(self.path, f"{what} at byte {self.at:,}", self.at + count, self.size)

    def skip(self, count: int, what: str) -> None:
        self.reserve(count, what)
        self.file.seek(count, 1)
        self.at += count

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def numbers(self, kind: int, count: int, what: str) -> list[Any]:
        code = _SCALARS[kind]
        self.reserve(count * struct.calcsize(code), what)  # before struct builds a format for it
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code), what)))

    def string(self, longest: int, what: str) -> str:
        length = self.u64(what)
        if length > self.size - self.at:
            raise truncated(self.path, f"{what} of {length:,} bytes", self.at + length, self.size)
        if length > longest:
            raise malformed(self.path, f"{what} has {length:,} bytes", allowed=f"up to {longest:,} bytes")
        return self.take(length, what).decode("utf-8", "replace")


def read_header(path: Path) -> Header:
    """Parse and validate the header of `path`; the tensors' bytes are not touched.

    In `metadata`, long arrays are `LongArray`. Raises WorkbenchError, naming the file and
    the item, for anything that contradicts the format. A tensor of a type that the `gguf`
    library does not know is kept and marked in its `problem`.
    """
    with opened(path) as (file, size):
        return parse_header(path, file, size)


def parse_header(path: Path, file: BinaryIO, size: int) -> Header:
    """`read_header`, from the open beginning of a file of `size` bytes that messages call `path`."""
    cursor = _Cursor(path, file, size)
    magic = cursor.take(4, "the magic number")
    if magic != b"GGUF":
        raise malformed(path, f"it starts with {magic!r}", allowed="b'GGUF', as every GGUF file does")
    version = cursor.u32("the version")
    if version not in (2, 3):
        big = version & 0xFFFF == 0 and version != 0
        found = "it is written for big-endian machines" if big else f"it is GGUF version {version}"
        raise WorkbenchError(path, found, allowed="GGUF versions 2 and 3, little-endian", do="convert the model again")
    tensor_count, key_count = cursor.u64("the number of tensors"), cursor.u64("the number of keys")
    for count, most, what in ((key_count, MOST_KEYS, "metadata keys"), (tensor_count, MOST_TENSORS, "tensors")):
        if count > most:
            raise malformed(path, f"it announces {count:,} {what}", allowed=f"up to {most:,}")
    metadata, spans = _metadata(cursor, key_count)
    architecture = str(metadata.get("general.architecture", ""))
    entries = [_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise malformed(path, f"general.alignment is {alignment!r}", allowed="a power of two")
    data = -(-cursor.at // alignment) * alignment
    tensors = _tensors(path, entries, alignment, data, size, architecture)
    return Header(tensors, metadata, spans)


def _metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """The values by key, and where each key's whole entry begins and ends in the file."""
    metadata: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    items = text = 0
    for number in range(count):
        start = cursor.at
        key = cursor.string(LONGEST_TOKEN, f"the name of metadata key {number}")
        what = f"the metadata {key[:80]!r}"
        if key in metadata:
            raise malformed(cursor.path, f"{what} appears twice")
        kind = cursor.u32(what)
        if kind in _SCALARS:
            metadata[key] = cursor.numbers(kind, 1, what)[0]
        elif kind == _STRING:
            metadata[key] = cursor.string(LONGEST_STRING, what)
            text += len(metadata[key])
        elif kind == _ARRAY:
            metadata[key] = found = _array(cursor, what, MOST_ITEMS - items)
            items += len(found) if isinstance(found, list) else found.count
        else:
            raise malformed(cursor.path, f"{what} is of type {kind}", allowed="types 0 to 12")
        spans[key] = (start, cursor.at)
        if text > MOST_TEXT:
            raise malformed(cursor.path, f"its metadata holds over {MOST_TEXT:,} bytes of text")
    return metadata, spans


def _array(cursor: _Cursor, what: str, most: int) -> list[Any] | LongArray:
    kind, count = cursor.u32(what), cursor.u64(what)
    if kind == _ARRAY:
        raise malformed(cursor.path, f"{what} is an array of arrays", allowed="arrays of numbers or strings")
    if kind not in _SCALARS and kind != _STRING:
        raise malformed(cursor.path, f"{what} is an array of type {kind}", allowed="types 0 to 8 and 10 to 12")
    width = 8 if kind == _STRING else struct.calcsize(_SCALARS[kind])
    cursor.reserve(count * width, f"{what}, an array of {count:,} items,")
    if count > most:
        raise malformed(
            cursor.path, f"{what} has {count:,} items", allowed=f"up to {MOST_ITEMS:,} in all arrays together"
        )
    start = cursor.at
    if kind == _STRING:
        item = f"a string of {what}"
        for _ in range(count):
            length = cursor.u64(item)
            if length > LONGEST_TOKEN:
                raise malformed(cursor.path, f"{item} has {length:,} bytes", allowed=f"up to {LONGEST_TOKEN:,} bytes")
            cursor.skip(length, item)
    elif count <= SHORT:
        return cursor.numbers(kind, count, what)
    else:
        cursor.skip(count * width, what)
    return LongArray(cursor.path, start, kind, count)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, logical shape, ggml type, offset in the data) of the next tensor."""
    name = check_name(cursor.path, cursor.string(LONGEST_TOKEN, "the name of a tensor"))
    what = f"the tensor {name!r}"
    dimensions = cursor.u32(what)
    if dimensions > 4:
        raise malformed(cursor.path, f"{what} has {dimensions:,} dimensions", allowed="up to 4")
    shape = tuple(reversed(cursor.numbers(10, dimensions, what)))  # the file has the input dimension first
    return name, shape, cursor.u32(what), cursor.u64(what)


def _tensors(
    path: Path,
    entries: list[tuple[str, tuple[int, ...], int, int]],
    alignment: int,
    data: int,
    size: int,
    architecture: str,
) -> list[TensorInfo]:
    ends = sorted({offset for *_, offset in entries} | {max(0, size - data)})
    following = dict(pairwise(ends))
    tensors: list[TensorInfo] = []
    seen: set[str] = set()
    for name, shape, kind, offset in entries:
        if name in seen:
            raise malformed(path, f"the tensor {name!r} appears twice")
        seen.add(name)
        if offset % alignment:
            raise malformed(path, f"the tensor {name!r} is at offset {offset:,}", allowed=f"multiples of {alignment}")
        layer, role = names.place(name, architecture)
        if kind in _TYPES:
            encoding, block, block_bytes, problem = _TYPES[kind]
            cols = shape[-1] if shape else 1
            if cols % block:
                raise malformed(
                    path, f"the tensor {name!r} has rows of {cols:,}, and {encoding} is stored in blocks of {block}"
                )
            nbytes = math.prod(shape) // block * block_bytes
        else:
            encoding, nbytes = f"type {kind}", following.get(offset, offset) - offset
            problem = f"its ggml type {kind} is unknown"
        info = TensorInfo(name, shape, encoding, nbytes, path, data + offset, layer, role, problem)
        tensors.append(info)
    check_spans(path, ((t.offset, t.offset + t.nbytes, t.name) for t in tensors), size)
    return tensors


_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def parts_of(path: Path) -> list[Path]:
    """The files of a model split as name-00001-of-00003.gguf, in order; `path` alone for any other name."""
    match = _SPLIT.search(path.name)
    if not match:
        return [path]
    stem = path.name[: match.start()]
    return [path.with_name(f"{stem}-{number:05d}-of-{match[2]}.gguf") for number in range(1, int(match[2]) + 1)]


def name_of(path: Path) -> str:
    """The model's name in a file's: without the ending, and without the number of the part."""
    return _SPLIT.sub("", path.name).removesuffix(".gguf")


def is_first(path: Path) -> bool:
    """Whether `path` is a whole GGUF or the first part of a split one."""
    match = _SPLIT.search(path.name)
    return match is None or int(match[1]) == 1

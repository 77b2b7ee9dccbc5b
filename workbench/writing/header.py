"""The head of a GGUF file as bytes: metadata, then each tensor's name, shape, type and place.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3. Metadata of a source file is taken over
byte for byte, so that no type of a value is guessed and a vocabulary of any size costs a copy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.checkpoint import gguf
from workbench.exceptions import WorkbenchError

Value = str | int | float
_U32, _F32, _STRING, _ARRAY = 4, 6, 8, 9


@dataclass(frozen=True)
class Entry:
    """A tensor of the file to be: `shape` is the logical one, [out, in]; `nbytes` are those of its data."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    nbytes: int


def taken_over(source: Path, without: Iterable[str]) -> dict[str, bytes]:
    """The metadata of a GGUF as it stands there, key -> the whole entry, leaving out keys or `prefix.` families."""
    left = tuple(without)
    spans = gguf.read_header(source).spans
    with source.open("rb") as file:
        found = {}
        for key, (first, end) in spans.items():
            if key in left or any(key.startswith(prefix) for prefix in left if prefix.endswith(".")):
                continue
            file.seek(first)
            found[key] = file.read(end - first)
    return found


def entries_of(values: Mapping[str, Value]) -> dict[str, bytes]:
    """Metadata as GGUF writes it: whole numbers as uint32, others as float32, texts as UTF-8."""
    made = {}
    for key, value in values.items():
        if isinstance(value, str):
            raw = struct.pack("<I", _STRING) + _string(value)
        elif isinstance(value, int):
            raw = struct.pack("<II", _U32, value)
        else:
            raw = struct.pack("<If", _F32, value)
        made[key] = _string(key) + raw
    return made


def texts_of(key: str, texts: Sequence[str]) -> dict[str, bytes]:
    """A key that holds an array of texts."""
    return {key: _string(key) + struct.pack("<IIQ", _ARRAY, _STRING, len(texts)) + b"".join(map(_string, texts))}


def head(metadata: Mapping[str, bytes], tensors: Iterable[Entry], alignment: int) -> tuple[bytes, list[int]]:
    """The bytes before the tensors' data, padded to `alignment`, and where each tensor begins after them."""
    entries = list(tensors)
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(entries), len(metadata)), *metadata.values()]
    offsets, at = [], 0
    for entry in entries:
        if entry.encoding not in gguf.NUMBERS:
            raise WorkbenchError(entry.name, f"GGUF has no type {entry.encoding}", allowed=", ".join(gguf.NUMBERS))
        dimensions = struct.pack(f"<{len(entry.shape)}Q", *reversed(entry.shape))  # the input dimension comes first
        place = struct.pack("<IQ", gguf.NUMBERS[entry.encoding], at)
        parts += [_string(entry.name), struct.pack("<I", len(entry.shape)), dimensions, place]
        offsets.append(at)
        at += padded(entry.nbytes, alignment)
    raw = b"".join(parts)
    return raw.ljust(padded(len(raw), alignment), b"\0"), offsets


def padded(nbytes: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw

"""A folder of safetensors with config and tokenizer, written a run of rows at a time and read back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from workbench.checkpoint import Checkpoint, TensorInfo, load, safetensors, values
from workbench.exceptions import WorkbenchError
from workbench.formats.rows import chunks
from workbench.progress import Progress, Steps
from workbench.quantizing.parts import Stored

SHARD = 5 << 30  # bytes of a file, as the hub likes them
PIECE = 4 << 20  # bytes copied at once
HELD = 8 * 4 << 20  # bytes of a run of rows while it is encoded
SAMPLE = 1 << 16  # weights of each matrix that are compared when the folder is read back
HALF = np.dtype("<f2")
LEFT_OUT = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".py", ".index.json")
LONGEST_NAME = 200  # letters of a file that is copied along


@dataclass(frozen=True)
class Entry:
    """A tensor of the folder: its name, type and shape, the file it lies in, and where there."""

    name: str
    kind: str
    shape: tuple[int, ...]
    shard: int
    offset: int

    @property
    def nbytes(self) -> int:
        return safetensors.nbytes_of(self.kind, self.shape)


@dataclass
class Shards:
    """The files of a folder, laid out before a byte of them is written."""

    entries: dict[str, Entry] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=lambda: [0])

    def add(self, name: str, kind: str, shape: tuple[int, ...]) -> None:
        entry = Entry(name, kind, shape, 0, 0)
        if self.sizes[-1] and self.sizes[-1] + entry.nbytes > SHARD:
            self.sizes.append(0)
        self.entries[name] = Entry(name, kind, shape, len(self.sizes) - 1, self.sizes[-1])
        self.sizes[-1] += entry.nbytes

    @property
    def nbytes(self) -> int:
        return sum(self.sizes)

    @property
    def names(self) -> list[str]:
        count = len(self.sizes)
        return (
            [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
            if count > 1
            else ["model.safetensors"]
        )

    def head(self, shard: int) -> bytes:
        mine = (entry for entry in self.entries.values() if entry.shard == shard)
        return safetensors.header_of({entry.name: (entry.kind, entry.shape, entry.offset) for entry in mine})


def laid_out(model: Checkpoint, matrices: Mapping[str, Stored]) -> Shards:
    """Where everything goes."""
    shards = Shards()
    for info in model.tensors.values():
        name = model.hf_name(info.name)
        if info.name in matrices:
            for ending, (kind, shape) in matrices[info.name].tensors().items():
                shards.add(f"{name.removesuffix('weight')}{ending}", kind, shape)
        else:
            shards.add(name, info.encoding if copied(model, info) else "F16", info.shape)
    return shards


def copied(model: Checkpoint, info: TensorInfo) -> bool:
    """Whether a tensor that is left alone goes into the folder byte for byte; else it becomes float16."""
    return model.kind == "safetensors" and info.packed is None and info.encoding in ("F16", "BF16", "F32")


def write_steps(
    model: Checkpoint, matrices: Mapping[str, Stored], shards: Shards, settings: Mapping[str, Any] | None, folder: Path
) -> Steps[None]:
    """Fill `folder`, which is there and empty, yielding the bytes of the source that were read.

    Raises:
        WorkbenchError: the disk is full, a tensor cannot be decoded, or what was written reads back differently.
    """
    done, total = 0, sum(info.nbytes for info in model.tensors.values())
    try:
        _settings(model, settings, folder)
        heads = [shards.head(number) for number in range(len(shards.sizes))]
        files = [(folder / name).open("wb") for name in shards.names]
        try:
            for file, head in zip(files, heads, strict=True):
                file.write(head)
            for info in model.tensors.values():
                for name, at, raw, share in _pieces(model, info, matrices.get(info.name)):
                    entry = shards.entries[name]
                    file = files[entry.shard]
                    file.seek(len(heads[entry.shard]) + entry.offset + at)
                    file.write(raw)
                    done += share
                    if share:
                        yield Progress(min(done, total), total, "B", info.name)
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        finally:
            for file in files:
                file.close()
    except OSError as reason:
        raise WorkbenchError(folder, f"it cannot be written ({reason})", do="check the disk") from reason
    if len(shards.names) > 1:
        index = {entry.name: shards.names[entry.shard] for entry in shards.entries.values()}
        said = {"metadata": {"total_size": shards.nbytes}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
    yield from _compare_steps(model, matrices, folder)


def plain_steps(model: Checkpoint, folder: Path) -> Steps[None]:
    """Fill `folder` with the model in plain floats, for a program that quantizes it."""
    return write_steps(model, {}, laid_out(model, {}), None, folder)


def _pieces(model: Checkpoint, info: TensorInfo, stored: Stored | None) -> Iterator[tuple[str, int, bytes, int]]:
    """(tensor of the folder, where in it, bytes, bytes of the source read for it)."""
    name = model.hf_name(info.name)
    if stored is None and copied(model, info):
        for first in range(0, info.nbytes, PIECE):
            raw = values.bytes_at(info, first, min(PIECE, info.nbytes - first)).tobytes()
            yield name, first, raw, len(raw)
        return
    if stored is None:
        _, weights = model.to_hf(info.name, model.read(info.name))
        with np.errstate(over="ignore"):
            half = weights.astype(HALF)
        if not np.isfinite(half).all():
            raise WorkbenchError(info.name, f"its largest weight is {np.abs(weights).max():g}", allowed="float16")
        yield name, 0, half.tobytes(), info.nbytes
        return
    stem = name.removesuffix("weight")
    for ending, array in stored.whole().items():
        yield f"{stem}{ending}", 0, array.tobytes(), 0
    at: dict[str, int] = {}
    for rows, weights in _runs(model, info, stored):
        encoded = stored.format.encode(weights)
        pieces = stored.pieces(encoded.parts)
        share = info.nbytes * (rows.stop - rows.start) // info.shape[0]
        for number, (ending, array) in enumerate(pieces.items()):
            raw = np.ascontiguousarray(array).tobytes()
            yield f"{stem}{ending}", at.get(ending, 0), raw, 0 if number else share
            at[ending] = at.get(ending, 0) + len(raw)


def _runs(model: Checkpoint, info: TensorInfo, stored: Stored) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of a matrix in transformers' order; a GGUF keeps some in another, so there the whole matrix is held."""
    multiple = stored.multiple * stored.format.row_multiple // gcd(stored.multiple, stored.format.row_multiple)
    whole = model.to_hf(info.name, model.read(info.name))[1] if model.kind == "gguf" else None
    for rows in chunks(info.shape[0], info.shape[1], multiple):
        weights = model.read(info.name, rows) if whole is None else whole[rows]
        yield rows, np.ascontiguousarray(weights)


def _settings(model: Checkpoint, settings: Mapping[str, Any] | None, folder: Path) -> None:
    """config.json with `quantization_config`, and the small files beside the model's weights; no code of its author."""
    source = model.hf_folder()
    for file in source.iterdir():
        small = file.is_file() and len(file.name) < LONGEST_NAME and not file.name.startswith(".")
        if small and file.name != "config.json" and not file.name.endswith(LEFT_OUT):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("auto_map", None)
    config.pop("quantization_config", None)
    if settings:
        config["quantization_config"] = dict(settings)
    if not all(copied(model, info) for info in model.tensors.values()):
        config.pop("torch_dtype", None)
        config["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _compare_steps(model: Checkpoint, matrices: Mapping[str, Stored], folder: Path) -> Steps[None]:
    """Raise unless the folder opens, and a piece of every matrix decodes to what its format says."""
    written = load(folder)
    for number, (name, stored) in enumerate(matrices.items(), 1):
        rows, weights = next(_sampled(model, model.tensors[name], stored))
        expected = stored.format.roundtrip(weights)
        found = written.read(model.hf_name(name), rows)
        if not np.allclose(expected, found, rtol=1e-6, atol=0):  # libraries multiply in another order
            raise WorkbenchError(
                folder, f"{name!r} in {stored.format.name} reads back differently", do="check the disk"
            )
        yield Progress(number, len(matrices), " matrices", f"checking {name}")


def _sampled(model: Checkpoint, info: TensorInfo, stored: Stored) -> Iterator[tuple[slice, np.ndarray]]:
    """The first rows of a matrix, about `SAMPLE` weights of them."""
    for rows, weights in _runs(model, info, stored):
        step = stored.format.row_multiple
        count = min(len(weights), max(step, SAMPLE // info.shape[1] // step * step))
        yield slice(rows.start, rows.start + count), np.ascontiguousarray(weights[:count])

"""A folder or a file on this machine, opened: which of its files are the model, and what must be refused."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from workbench import files
from workbench.checkpoint import bounded_json, convert, gguf, licence, safetensors
from workbench.checkpoint.checkpoint import Checkpoint, is_extra, ordered
from workbench.checkpoint.packed.joining import joined
from workbench.checkpoint.tensors import TensorInfo, check_name, malformed, opened
from workbench.exceptions import WorkbenchError

PICKLE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
KINDS = 'a folder with safetensors, a .gguf file, a hub id such as "org/name" or "org/name@revision", or "demo"'
INDEX = "model.safetensors.index.json"
LONGEST_INDEX = 32 << 20  # bytes
MOST_INDEXED = 500_000  # tensors in all shards together


def open_file(path: Path) -> Checkpoint:
    """Open a GGUF file (its other parts too, if it is split)."""
    with opened(path) as (file, _):
        magic = file.read(4)
    if path.suffix == ".gguf" or magic == b"GGUF":
        return _open_gguf(path)
    if path.suffix in PICKLE:
        raise pickle_error(path)
    if path.suffix == ".safetensors":
        raise WorkbenchError(path, "this is one file of a model", do="open its folder, which has config.json too")
    raise WorkbenchError(path, f"it is not a GGUF file: it starts with {magic!r}", allowed=KINDS)


def _open_gguf(path: Path) -> Checkpoint:
    parts = gguf.parts_of(path)
    missing = next((part for part in parts if not part.exists()), None)
    if missing:
        raise WorkbenchError(missing, f"this one of the model's {len(parts)} files is missing", do="download it too")
    headers = [gguf.read_header(part) for part in parts]
    tensors = _merged(parts[0], [info for header in headers for info in header.tensors])
    metadata = headers[0].metadata
    announced = metadata.get("split.tensors.count")
    if len(parts) > 1 and isinstance(announced, int) and announced != len(tensors):
        raise malformed(path, f"its parts hold {len(tensors)} tensors", allowed=f"{announced}, as the first part says")
    model = _checkpoint(gguf.name_of(path), parts[0], "gguf", convert.config_of(metadata, tensors), metadata, tensors)
    return replace(model, licence=licence.of_metadata(metadata), notes=_notes(model))


def open_folder(path: Path) -> Checkpoint:
    """Open a folder of transformers: config.json, and safetensors in one file or sharded."""
    if (path / INDEX).exists():
        tensors = _indexed(path)
    else:
        found = sorted(path.glob("*.safetensors"))
        chosen = [file for file in found if file.name == "model.safetensors"] or found
        if not chosen:
            return _open_other(path)
        if len(chosen) > 1:
            some = ", ".join(file.name for file in chosen[:3])
            raise WorkbenchError(path, f"it has {len(chosen)} safetensors files ({some}, ...) and no {INDEX}")
        tensors = safetensors.read_header(chosen[0]).tensors
    config = bounded_json.read(path / "config.json") if (path / "config.json").exists() else {}
    _refuse_remote_code(path, config)
    tensors = joined(path, config, tensors)
    model = _checkpoint(path.resolve().name, path, "safetensors", config, {}, tensors)
    return replace(model, licence=licence.of_card(path), notes=_notes(model))


def _open_other(path: Path) -> Checkpoint:
    """A folder without safetensors: the one GGUF in it, or the reason why it cannot be opened."""
    found = sorted(file for file in path.glob("*.gguf") if gguf.is_first(file))
    if len(found) == 1:
        return _open_gguf(found[0])
    if found:
        names = ", ".join(file.name for file in found[:10])
        raise WorkbenchError(path, f"it has {len(found)} GGUF files", allowed=names, do="give the path of one of them")
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLE)
    if pickles:
        raise pickle_error(pickles[0])
    raise WorkbenchError(path, "there are no weights in this folder", allowed=KINDS)


def pickle_error(item: object) -> WorkbenchError:
    """The refusal of a checkpoint that is a program, not data."""
    return WorkbenchError(
        item,
        "this is a pickle checkpoint, which runs its author's code when it is opened; it was not",
        allowed="safetensors or GGUF",
        do="find a safetensors version of the model, or convert it on a machine that you can spare",
    )


def _refuse_remote_code(path: Path, config: dict[str, Any]) -> None:
    """Refuse a model that only its author's Python files can run; one that transformers has itself needs none."""
    if not config.get("auto_map"):
        return
    if not _native(str(config.get("model_type"))):
        raise WorkbenchError(
            path / "config.json",
            f"the model type {str(config.get('model_type'))[:60]!r} is not part of transformers: it needs code that "
            "comes with the model (auto_map), which is never run",
            do="look for a version of the model that transformers supports, or install a newer transformers",
        )


def _native(model_type: str) -> bool:
    """Whether the installed transformers lists the model type (by its text: importing its lists takes seconds)."""
    installed = importlib.util.find_spec("transformers")
    if installed is None or installed.origin is None:
        return True  # then nothing here can run a model, with its author's code or without
    lists = Path(installed.origin).with_name("models") / "auto"
    return any(f'"{model_type}"' in file.read_text("utf-8") for file in lists.glob("*.py"))


def _indexed(folder: Path) -> list[TensorInfo]:
    """The tensors of the shards that the index names, each where the index says."""
    index = folder / INDEX
    walk = bounded_json.Walk(index, bounded_json.text_of(index, LONGEST_INDEX))
    where: dict[str, str] = {}
    for key in walk.members(100):
        if key != "weight_map":
            walk.value(safetensors.LONGEST_METADATA)
            continue
        for name in walk.members(MOST_INDEXED):
            file = walk.value()
            if not isinstance(file, str):
                raise malformed(index, f"the tensor {name!r} is in the file {file!r}", allowed="the name of a file")
            where[check_name(index, name)] = file
    walk.end()
    if not where:
        raise malformed(index, "it has no weight_map")
    shards: dict[str, dict[str, TensorInfo]] = {}
    for file in sorted(set(where.values())):
        path = files.inside(folder, file)
        if path.suffix != ".safetensors":
            raise pickle_error(path)
        if not path.exists():
            raise WorkbenchError(path, f"the shard is missing; {index.name} names it", do="download it too")
        shards[file] = {info.name: info for info in safetensors.read_header(path).tensors}
    for name, file in where.items():
        if name not in shards[file]:
            raise malformed(folder / file, f"the tensor {name!r} is not in it", allowed=f"what {index.name} says")
    return [shards[file][name] for name, file in where.items()]


def _merged(path: Path, tensors: list[TensorInfo]) -> list[TensorInfo]:
    seen: dict[str, Path] = {}
    for info in tensors:
        if info.name in seen:
            raise malformed(path, f"the tensor {info.name!r} is in {seen[info.name].name} and in {info.file.name}")
        seen[info.name] = info.file
    return tensors


def _checkpoint(
    name: str,
    path: Path,
    kind: Literal["safetensors", "gguf"],
    config: dict[str, Any],
    metadata: dict[str, Any],
    tensors: list[TensorInfo],
) -> Checkpoint:
    extras = {info.name: info for info in tensors if is_extra(info.name)}
    return Checkpoint(name, path, kind, config, metadata, ordered([t for t in tensors if t.name not in extras]), extras)


FLOATS = ("F64", "F32", "F16", "BF16")
TRANSPOSED = ("gpt2", "gpt_oss", "llama4", "llama4_text")  # model types of folders that keep matrices as [in, out]


def _notes(model: Checkpoint) -> tuple[str, ...]:
    """What a reader of any result about this model must know."""
    notes = []
    matrices = model.matrices
    grids = sorted({info.encoding for info in matrices} - set(FLOATS))
    if grids:
        bits = 8 * sum(info.nbytes for info in matrices) / sum(info.params for info in matrices)
        notes.append(
            f"The weights are stored as {', '.join(grids)} ({bits:.2g} bits per weight) and lie on those grids: "
            "a format on one of them looks perfect, and others near it too good. Compare formats on a float version."
        )
    if model.kind == "safetensors" and model.config.get("model_type") in TRANSPOSED:
        notes.append(f"{model.architecture} keeps some matrices as [in, out]: their rows here are input channels.")
    broken = [info for info in model.tensors.values() if info.problem]
    if broken:
        notes.append(f"{len(broken)} tensors cannot be read, such as {broken[0].name!r}: {broken[0].problem}.")
    return tuple(notes)

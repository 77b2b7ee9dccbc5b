"""A packed folder's weights as plain floats, for a converter that does not know their layout.

What several tensors hold together, and FP8 with its scales, becomes float32: a code times its scale fits no 16-bit
float. Everything else is copied as it is.
"""

from __future__ import annotations

from pathlib import Path

from workbench import formats
from workbench.checkpoint import Checkpoint, TensorInfo, safetensors
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.progress import Progress, Steps
from workbench.writing import stored


def is_packed(info: TensorInfo) -> bool:
    """Whether a tensor's bytes are codes that mean nothing without others."""
    return info.packed is not None or info.encoding.startswith("F8_")


def is_needed(model: Checkpoint) -> bool:
    """Whether the weights must be decoded first. The experts of gpt-oss need not: llama.cpp has MXFP4 itself."""
    native = model.quant_method == "mxfp4"
    return any(is_packed(info) and not native for info in model.tensors.values())


def size_of(model: Checkpoint) -> int:
    """Bytes of the decoded weights."""
    return sum(stored.nbytes(info, _kept(info)) for info in model.tensors.values())


def in_gguf(info: TensorInfo) -> Format | None:
    """What a matrix is kept in that a plan leaves as it is: its own 16-bit float, or F16 if it was packed."""
    if is_packed(info):
        return formats.get("F16")
    return formats.get(info.encoding) if info.encoding in ("F16", "BF16") else None


def write_steps(model: Checkpoint, path: Path) -> Steps[None]:
    """Write the weights as one safetensors file, a few runs of rows in memory at a time.

    Raises:
        WorkbenchError: a tensor cannot be decoded, or the disk is full.
    """
    tensors = list(model.tensors.values())
    used = {info.name: kept for info in tensors if (kept := _kept(info)) is not None}
    places: dict[str, tuple[str, tuple[int, ...], int]] = {}
    end = 0
    for info in tensors:
        if info.problem:
            raise WorkbenchError(f"{model.name}, tensor {info.name}", info.problem)
        places[info.name] = "F32" if info.name in used else info.encoding, info.shape, end
        end += stored.nbytes(info, used.get(info.name))
    done = 0
    try:
        with path.open("wb") as file:
            file.write(safetensors.header_of(places))
            for info, raw in stored.stream(model, tensors, used, {}):
                file.write(raw)
                done += len(raw)
                yield Progress(done, end, "B", f"decoding {info.name}")
    except OSError as reason:
        raise WorkbenchError(path, f"it cannot be written ({reason})", do="check the disk") from reason


def _kept(info: TensorInfo) -> Format | None:
    return formats.get("F32") if is_packed(info) else None

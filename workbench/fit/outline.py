"""A model of which only the headers are here, or only the config: enough to count its bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from workbench import files
from workbench.checkpoint import Checkpoint, TensorInfo, names
from workbench.exceptions import WorkbenchError
from workbench.fit import layout, metadata
from workbench.fit.architecture import Architecture

FLOATS = {
    # config.json's dtype -> (the encoding's name, bytes)
    **{"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)},
}


@dataclass(frozen=True, eq=False, repr=False)
class Outline(Checkpoint):
    """A checkpoint without its weights: plans and sizes work as for any other, reading does not."""

    @cached_property
    def fingerprint(self) -> str:
        stored = [(info.name, info.shape, info.encoding, info.nbytes) for info in self.tensors.values()]
        return files.digest("outline", self.kind, self.config, stored)

    def read(self, name: str, rows: slice | None = None) -> NoReturn:
        raise self._absent()

    def digest(self, name: str) -> NoReturn:
        raise self._absent()

    def hf_folder(self) -> NoReturn:
        raise self._absent()

    def _absent(self) -> WorkbenchError:
        return WorkbenchError(self.name, "its weights were not downloaded", do=f'wb.load("{self.name}")')


def from_config(config: Mapping[str, Any]) -> tuple[Outline, Architecture]:
    """The outline of a model that is known by its config alone, in the float type that the config names.

    Raises:
        WorkbenchError: naming the key that is missing, not a number, or out of range.
    """
    described = layout.describe(config)
    name = f"a model of the type {described.family[:40]}"
    encoding, width, assumed = _float_of(config)
    tensors = {}
    for tensor, shape in described.tensors.items():
        layer, role = names.place(tensor)
        size = width * math.prod(shape)
        tensors[tensor] = TensorInfo(tensor, shape, encoding, size, Path(name), 0, layer, role)
    outline = Outline(name, Path(name), "safetensors", dict(config), {}, tensors)
    return outline, replace(described, assumed=(*described.assumed, *assumed))


def _float_of(config: Mapping[str, Any]) -> tuple[str, int, tuple[str, ...]]:
    text = config.get("text_config")
    sources = (config, text) if isinstance(text, Mapping) else (config,)
    said = next((source[key] for source in sources for key in ("dtype", "torch_dtype") if source.get(key)), None)
    found = FLOATS.get(str(said).removeprefix("torch."))
    assumed = []
    if found is None:
        assumed.append("the config names no float type: bfloat16 was taken")
    if isinstance(config.get("quantization_config"), Mapping):
        method = str(config["quantization_config"].get("quant_method", "a method that is not named"))[:40]
        assumed.append(
            f"the published weights are quantized ({method}); from the config alone they are counted as floats"
        )
    return *(found or FLOATS["bfloat16"]), tuple(assumed)


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """What decides the memory of an opened checkpoint beside its tensors.

    Raises:
        WorkbenchError: naming the key of the config or the metadata that is missing, not a number, or out of range.
    """
    if checkpoint.kind == "gguf":
        item = f"{checkpoint.name}'s metadata"
        described = metadata.describe(checkpoint.metadata, checkpoint.tensors.values(), item)
    else:
        described = layout.describe(checkpoint.config, f"{checkpoint.name}'s config.json")
    shapes = {info.name: info.shape for info in checkpoint.tensors.values()}
    # a vision or audio part is among the tensors of the header, so nothing was left out
    assumed = tuple(line for line in described.assumed if line != layout.TEXT_ONLY)
    return replace(described, tensors=shapes, assumed=assumed)

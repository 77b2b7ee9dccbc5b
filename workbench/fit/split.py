"""A model split between a GPU and main memory, layer by layer, as llama.cpp does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench import figures
from workbench.exceptions import WorkbenchError
from workbench.fit import cache

if TYPE_CHECKING:
    from workbench.fit.answer import Memory
    from workbench.fit.devices import Device


@dataclass(frozen=True)
class Offload:
    """A model split between a GPU and main memory.

    Attributes:
        layers: how many of `of` layers (the head counts as one) are on the GPU; llama.cpp's -ngl.
        gpu, cpu: bytes on either side.
    """

    layers: int
    of: int
    gpu: int
    cpu: int

    def __str__(self) -> str:
        there, here = figures.size(self.gpu), figures.size(self.cpu)
        return f"{self.layers} of {self.of} layers on the GPU: {there} there, {here} in main memory"


def split(memory: Memory, device: Device) -> Offload:
    """As many layers on the GPU as fit there with their part of the cache, the last ones first.

    Raises:
        WorkbenchError: an engine that does not split a model so.
    """
    if memory.engine != "llama.cpp":
        raise WorkbenchError("offload", f"{memory.engine} does not split a model so", allowed='engine="llama.cpp"')
    here = memory.at(device=device)
    held, architecture = here.question.weights.layers, here.question.subject.architecture
    each = cache.by_layer(architecture, here.context, here.kv, here.engine)
    layers = len(architecture.layers)
    gpu, moved = here.parts["compute"] + here.parts["overhead"], 0
    for layer in reversed(range(layers)):
        more = held.get(layer, 0) + here.batch * each[layer].total
        if gpu + more > device.usable:
            break
        gpu, moved = gpu + more, moved + 1
    whole = here.needed(device)
    if moved == layers and whole <= device.usable:  # the head, and what lies in no layer
        gpu, moved = whole, layers + 1
    if not moved:
        return Offload(0, layers + 1, 0, here.total)
    return Offload(moved, layers + 1, gpu, max(0, here.total - gpu))

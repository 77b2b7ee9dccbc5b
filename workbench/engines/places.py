"""Where each tensor of a checkpoint lies in the transformers model that was built from it.

transformers 5 renames tensors, and joins some of them: the experts of a layer become one
stack, gate above up. What is measured on a parameter belongs to the tensors in it, and a
tensor is changed by changing its part of a parameter; both go through here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoint import Checkpoint
from workbench.engines import streaming
from workbench.exceptions import need

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Place:
    """One tensor's part of a parameter.

    Attributes:
        tensor: the checkpoint's name.
        name: the parameter's name in the model.
        parameter: [out, in], or a stack [experts, out, in] that several tensors share.
        index: of the tensor's part: an expert or all of them, and a run of rows.
        order: [out] row j of the part is row order[j] of the file; None where they agree.
    """

    tensor: str
    name: str
    parameter: torch.nn.Parameter
    index: tuple[Any, ...]
    order: np.ndarray | None = None

    @property
    def part(self) -> torch.Tensor:
        """A view of the tensor's weights in the model, without gradient; writing to it changes the model."""
        return self.parameter.detach()[self.index]

    def rows_of_file(self, rows: np.ndarray) -> np.ndarray:
        """`rows` [..., out], one figure for each output, from the model's order to the file's."""
        if self.order is None:
            return rows
        found = np.empty_like(rows)
        found[..., self.order] = rows
        return found


def places(model: Any, checkpoint: Checkpoint) -> dict[str, Place]:
    """Tensor name -> its place, for every matrix of the checkpoint that the model has, in the checkpoint's order.

    A head tied to the embedding has no place of its own.
    """
    numbered = _Numbered(checkpoint)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, Place] = {}
    seen: set[int] = set()
    for name, make in streaming.makers(model, numbered, need("torch").float32):
        parameter = parameters.get(name)
        if parameter is None or parameter.dim() < 2 or id(parameter) in seen:
            continue
        numbers = make()
        if numbers.dim() < 2:
            continue
        seen.add(id(parameter))
        for number in numbers.unique().long().tolist():
            tensor = numbered.names[number]
            found[tensor] = Place(tensor, name, parameter, _box(numbers == number), order_of(checkpoint, tensor))
    return {info.name: found[info.name] for info in checkpoint.matrices if info.name in found}


class _Numbered:
    """In the stead of `Weights`: a tensor's values are its number, with one input instead of all."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.names = list(checkpoint.tensors)
        self.numbers = {name: float(number) for number, name in enumerate(self.names)}

    def tensor(self, name: str) -> torch.Tensor:
        torch = need("torch")
        shape = self.checkpoint.tensors[name].shape
        return torch.full((*shape[:-1], 1) if len(shape) > 1 else shape, self.numbers[name])


def _box(there: torch.Tensor) -> tuple[Any, ...]:
    """The index of the true values' box: whole axes are left whole, an axis with one of several is dropped."""
    index: list[Any] = []
    for axis, length in enumerate(there.shape[:-1]):
        others = [other for other in range(there.dim()) if other != axis]
        hit = there.any(dim=tuple(others)).nonzero().flatten()
        first, end = int(hit[0]), int(hit[-1]) + 1
        if first == 0 and end == length:
            index.append(slice(None))
        else:
            index.append(first if there.dim() == 3 and axis == 0 and end == first + 1 else slice(first, end))
    return tuple(index)


def order_of(checkpoint: Checkpoint, tensor: str) -> np.ndarray | None:
    """[out] row j of a matrix in transformers' order is row order[j] of the file; None where they agree."""
    rows = checkpoint.tensors[tensor].shape[-2] if len(checkpoint.tensors[tensor].shape) == 2 else 0
    if checkpoint.kind == "safetensors" or not rows:
        return None
    numbers = np.arange(rows, dtype=np.float32)[:, None]
    order = checkpoint.to_hf(tensor, numbers)[1][:, 0].astype(np.int64)
    return None if (order == np.arange(rows)).all() else order

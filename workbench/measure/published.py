"""Another checkpoint of a model, such as a quantized one that somebody published, in the stead of a format."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from workbench import files
from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.engines.places import order_of
from workbench.exceptions import WorkbenchError
from workbench.formats.base import Weights
from workbench.measure.moved import Moved


@dataclass(frozen=True, eq=False)
class Twin:
    """A tensor of the other checkpoint that stands for one of the model's.

    Attributes:
        order: [out] row j of the model's tensor is row order[j] of this one; None: the rows agree.
    """

    info: TensorInfo
    order: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Published:
    """Weights as another checkpoint has them; where `wb.errors` takes a format, it takes one of these.

    Attributes:
        name: how the tables call it.
        names: the model's tensor -> the name of the other's, for all that both have.
        twins: the same for those that can be held against each other.
        unlike: the model's tensor -> why the other's cannot be held against it; those that it has not are not here.
        moved: scales that went from one tensor into another, which `read` undoes; None: nothing was looked for.
    """

    other: Checkpoint
    name: str
    names: Mapping[str, str]
    twins: Mapping[str, Twin]
    unlike: Mapping[str, str] = field(default_factory=dict)
    moved: Moved | None = None

    importance: ClassVar[str] = "unused"
    row_multiple: ClassVar[int] = 1
    family: ClassVar[str] = "published"
    encodable: ClassVar[bool] = True

    @classmethod
    def of(cls, model: Checkpoint, other: Checkpoint, taken: Iterable[str] = ()) -> Published:
        """Pair the tensors of two checkpoints by name, through transformers' names if one of them is a GGUF.

        Raises:
            WorkbenchError: they have no matrix in common, or a GGUF's architecture is one that cannot be laid out.
        """
        names = _paired(model, other)
        twins, unlike = {}, {}
        for name, theirs in names.items():
            here, there = model.tensors[name], other.tensors[theirs]
            if here.shape != there.shape:
                unlike[name] = f"it is {list(there.shape)} there and {list(here.shape)} in {model.name}"
            else:
                twins[name] = Twin(there, _order(model, name, other, theirs))
        if not any(info.name in twins for info in model.matrices):
            some = ", ".join(info.name for info in other.matrices[:3]) or "none"
            raise WorkbenchError(
                other.name,
                f"none of its matrices ({some}, ...) is one of {model.name}'s",
                do="hold a checkpoint against the model that it was made from",
            )
        moved = Moved.between(model, other, {name: names[name] for name in twins})
        return cls(other, _unlike(other.name, taken), names, twins, unlike, moved)

    def read(self, tensor: str, rows: slice | None = None) -> Weights:
        """The other's weights for `rows` of the model's `tensor`, in the model's order, without what was moved."""
        twin = self.twins[tensor]
        if self.moved is not None and self.moved.involved(tensor):
            return self.moved.factors(tensor).undo(self.other.read(twin.info.name, rows), rows)
        if twin.order is None:
            return self.other.read(twin.info.name, rows)
        wanted = twin.order[rows or slice(None)]
        if not len(wanted):
            return self.other.read(twin.info.name, slice(0, 0))
        first = int(wanted.min())
        return self.other.read(twin.info.name, slice(first, int(wanted.max()) + 1))[wanted - first]

    def nbytes_of(self, tensor: str) -> int:
        """Bytes of the other's tensor, its scales included."""
        name = self.twins[tensor].info.name
        return sum(info.nbytes for info in self.other.held_in(name))

    def digest(self, tensor: str) -> str:
        """A name for what `read` gives."""
        twin = self.twins[tensor]
        order = b"" if twin.order is None else twin.order.tobytes()
        found = files.digest(self.other.digest(twin.info.name), order)
        involved = self.moved.involved(tensor) if self.moved is not None else ()
        if self.moved is None or not involved:
            return found
        code = files.code_version(sys.modules[type(self.moved).__module__])
        both = [checkpoint.digest(name) for checkpoint in (self.moved.model, self.other) for name in involved]
        return files.digest(found, code, both)

    def __str__(self) -> str:
        return self.name


def _paired(model: Checkpoint, other: Checkpoint) -> dict[str, str]:
    """The model's tensors -> the other's of the same meaning."""
    if model.kind == other.kind:
        return {name: name for name in model.tensors if name in other.tensors}
    theirs = {hf: name for name, hf in other.hf_names.items() if name in other.tensors}
    return {name: theirs[hf] for name, hf in model.hf_names.items() if name in model.tensors and hf in theirs}


def _order(model: Checkpoint, name: str, other: Checkpoint, theirs: str) -> np.ndarray | None:
    if model.kind == other.kind:
        return None
    here, there = order_of(model, name), order_of(other, theirs)
    if here is None:
        return there
    back = np.argsort(here)  # the row of transformers' that each row of the model's file is
    return back if there is None else there[back]


def _unlike(name: str, taken: Iterable[str]) -> str:
    """`name`, numbered if another of the same name was there before."""
    used, number = set(taken), 2
    while (tried := name if number == 2 and name not in used else f"{name} ({number})") in used:
        number += 1
    return tried

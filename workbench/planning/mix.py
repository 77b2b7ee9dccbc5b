"""A plan: which format each matrix of a model is stored in, and the exact bytes of the whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.exceptions import WorkbenchError
from workbench.formats import Format

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Plan:
    """A format for each matrix of one model.

    Attributes:
        name: the recipe or format that was asked for.
        checkpoint: the model it is for.
        formats: tensor name -> the format really used, fallbacks for awkward shapes included. A tensor
            that is not named here stays as it is in the file.
        nbytes: exact bytes of all the model's tensors, those that stay included.
    """

    name: str
    checkpoint: Checkpoint = field(repr=False)
    formats: dict[str, Format]
    nbytes: int

    def __getitem__(self, tensor: str) -> Format:
        if tensor not in self.formats:
            raise WorkbenchError(
                f"plan {self.name}", f"it says nothing of {tensor!r}", do="such a tensor stays as it is in the file"
            )
        return self.formats[tensor]

    @property
    def model(self) -> str:
        """The fingerprint of the model it is for."""
        return self.checkpoint.fingerprint

    @property
    def params(self) -> int:
        """The number of the model's parameters."""
        return self.checkpoint.params

    @property
    def importance(self) -> Mapping[str, np.ndarray]:
        """Tensor name -> mean square of each input channel, float32 [in] or [experts, in], that its formats were
        chosen with; every use of the plan takes it unless told otherwise. A plan without a card has none."""
        return {}

    @property
    def importance_of(self) -> str:
        """What `importance` was measured on; "" where there is none."""
        return ""

    @property
    def bits(self) -> float:
        """Bits per weight of the whole model."""
        return 8 * self.nbytes / max(self.params, 1)

    def to_json(self) -> str:
        """The plan as JSON: the model it is for, and its tensors by format; `from_json` reads it."""
        from workbench.planning.saved import written

        return written(self)

    @staticmethod
    def from_json(text: str, model: Checkpoint, *, anyway: bool = False) -> Plan:
        """The plan that `to_json` wrote, for that model; only names of tensors and formats are taken from it.

        Args:
            anyway: take it for a model of the same shapes too, such as a copy of the file or a fine-tuned model.

        Raises:
            WorkbenchError: no such JSON, another model's plan, a tensor or format that is unknown.
        """
        from workbench.planning.saved import read

        return read(text, model, anyway=anyway)

    def __repr__(self) -> str:
        mix = ", ".join(f"{count} {name}" for name, count in Counter(map(str, self.formats.values())).most_common())
        return f"<Plan {self.name}: {self.nbytes:,} bytes, {self.bits:.2f} bits per weight ({mix})>"


def of_plan(plan: Plan, format: object) -> tuple[Checkpoint, Plan]:
    """(its model, itself), for calls that take a model and a format, or a plan alone, which says both."""
    if format is not None:
        raise WorkbenchError(f"plan {plan.name}", "it says its formats already", do="leave the format out")
    return plan.checkpoint, plan


# Matrices that llama.cpp never quantizes: small ones of single architectures (its `tensor_allows_quantization`).
_LEFT_BY_LLAMA_CPP = re.compile(
    r"altup|laurel|indexer\.[kq]_proj|shortconv\.conv|time_mix_(first|[wvag]\d|decay_w\d|lerp_fused)"
)


def touched(checkpoint: Checkpoint, format: Format) -> list[TensorInfo]:
    """The matrices that the programs for `format` store in it."""
    if format.family == "ggml":
        return [info for info in checkpoint.matrices if not _LEFT_BY_LLAMA_CPP.search(info.name)]
    if format.family == "float":
        return checkpoint.matrices
    return [info for info in checkpoint.matrices if info.role not in ("embed_tokens", "lm_head")]


def planned(checkpoint: Checkpoint, name: str, asked: Mapping[str, Format]) -> Plan:
    matrices = {info.name: info for info in checkpoint.matrices}
    unknown = [tensor for tensor in asked if tensor not in matrices]
    if unknown:
        known = "not a matrix that can be quantized" if unknown[0] in checkpoint.tensors else "not a tensor"
        raise WorkbenchError(
            unknown[0], f"it is {known} of {checkpoint.name}", allowed=", ".join([*list(matrices)[:5], "..."])
        )
    used, nbytes = {}, 0
    for tensor, format in asked.items():
        *experts, rows, cols = matrices[tensor].shape  # each expert of a stack is a matrix of its own
        used[tensor], size = _stored(format, (rows, cols))
        nbytes += prod(experts) * size
    return Plan(name, checkpoint, used, nbytes + left_as_is(checkpoint, used))


@lru_cache(maxsize=4096)  # a model of many experts asks for few shapes, tens of thousands of times
def _stored(format: Format, shape: tuple[int, int]) -> tuple[Format, int]:
    """What is really stored for a [rows, cols] matrix, and its bytes."""
    used = format.used_for(shape)
    return used, used.nbytes(shape)


def left_as_is(checkpoint: Checkpoint, used: dict[str, Format]) -> int:
    """Bytes of the tensors that the plan does not name.

    They stay as they are; but from other files to GGUF, vectors become F32, and what only served to read
    the weights (scales, buffers) is left out.
    """
    to_gguf = checkpoint.kind != "gguf" and any(format.family == "ggml" for format in used.values())
    left = 0
    for info in checkpoint.tensors.values():
        if info.name not in used:
            left += 4 * info.params if to_gguf and len(info.shape) == 1 else info.nbytes
    if not to_gguf:
        scales = {f"{name}{ending}" for name in used for ending in ("_scale", "_scale_inv")}
        left += sum(info.nbytes for info in checkpoint.extras.values() if info.name not in scales)
    return left

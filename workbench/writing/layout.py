"""A file before it is written: its metadata, its tensors in their order, and so its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.formats import Format
from workbench.planning import Plan
from workbench.writing import header, stored

# llama.cpp's numbers of file types (`enum llama_ftype`, include/llama.h), by recipe or by the type of most weights
FILE_TYPES = {
    **{"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q6_K": 18},
    **{"Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17},
    **{"Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25},
    **{"IQ3_S": 26, "IQ2_S": 28, "IQ4_XS": 30, "IQ1_M": 31, "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38},
}


@dataclass(frozen=True)
class Layout:
    """A file before it is written: its head, and its tensors in their order."""

    tensors: list[TensorInfo]
    entries: list[header.Entry]
    metadata: dict[str, bytes]
    alignment: int
    importance: dict[str, np.ndarray]
    head: bytes
    offsets: list[int]

    @property
    def nbytes(self) -> int:
        return len(self.head) + sum(header.padded(entry.nbytes, self.alignment) for entry in self.entries)


def laid_out(model: Checkpoint, plan: Plan, importance: Mapping[str, np.ndarray], about: str) -> Layout:
    """A plan of a GGUF as a file; `about` is what the importance was measured on."""
    tensors = sorted([*model.tensors.values(), *model.extras.values()], key=lambda info: (info.file, info.offset))
    entries = [_entry(info, plan.formats.get(info.name)) for info in tensors]
    used = _importance_used(plan, importance)
    metadata = _metadata(model, plan, used, about)
    alignment = int(model.metadata.get("general.alignment", 32))
    return Layout(tensors, entries, metadata, alignment, used, *header.head(metadata, entries, alignment))


def nbytes_of(plan: Plan, importance: Mapping[str, np.ndarray] | None = None, about_importance: str = "") -> int:
    """Bytes of the file that `export` would write; the arguments are those of `export`.

    Exact for a plan of a GGUF. A folder's plan is exact for its tensors, without the head that the converter makes.
    """
    if plan.checkpoint.kind != "gguf":
        return plan.nbytes
    if importance is None:
        importance, about_importance = plan.importance, about_importance or plan.importance_of
    return laid_out(plan.checkpoint, plan, importance, about_importance).nbytes


def _entry(info: TensorInfo, used: Format | None) -> header.Entry:
    copied = used is None or stored.is_copied(info, used)
    encoding = info.encoding if copied or used is None else used.name
    return header.Entry(info.name, info.shape, encoding, stored.nbytes(info, used))


def _importance_used(plan: Plan, importance: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The importance of the tensors whose format makes use of it."""
    return {
        name: importance[name]
        for name, format in plan.formats.items()
        if format.importance != "unused" and importance.get(name) is not None
    }


def _metadata(model: Checkpoint, plan: Plan, used: Mapping[str, np.ndarray], about: str) -> dict[str, bytes]:
    weights: Counter[str] = Counter()
    for name, format in plan.formats.items():
        weights[format.name] += model.tensors[name].params
    most = weights.most_common(1)[0][0] if weights else ""
    own: dict[str, header.Value] = {"general.quantization_version": 2}
    file_type = FILE_TYPES.get(plan.name, FILE_TYPES.get(most))
    if file_type is not None:
        own["general.file_type"] = file_type
    if used:
        own["quantize.imatrix.entries_count"] = len(used)
        own["quantize.imatrix.dataset"] = about or "not named"
    taken = header.taken_over(model.path, ("split.", "quantize.imatrix.", *own))
    return taken | header.entries_of(own)

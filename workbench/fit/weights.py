"""Bytes of a model's weights by part, as each engine holds them in each format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from workbench import formats
from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.exceptions import WorkbenchError
from workbench.fit.architecture import PARTS, part_of
from workbench.formats import Format
from workbench.planning import Plan, Spec, plan_for

WIDTHS = {"f32": 4, "f16": 2, "bf16": 2}
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
STATE = 64  # bytes of a 4-bit matrix's table of 16 levels, which bitsandbytes keeps with each


@dataclass(frozen=True)
class WeightBytes:
    """Weights as one engine holds them.

    Attributes:
        parts: bytes by part, in the order of `PARTS`.
        layers: bytes by the layer's number; None: what is in no layer.
        label: the format's name, as shown.
        bits: the number in the format's name, as rules of thumb take it.
        largest: weights in the largest matrix that is unpacked for its product.
        notes: what a reader of the figures must know.
    """

    parts: dict[str, int]
    layers: dict[int | None, int]
    label: str
    bits: float
    largest: int = 0
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def weights_of(checkpoint: Checkpoint, spec: Spec | None, engine: str, dtype: str) -> WeightBytes:
    """The weights of `checkpoint` in the format, recipe or plan `spec` (None: as they are published).

    Raises:
        WorkbenchError: a format that the engine does not run.
    """
    if engine == "llama.cpp":
        return _llama_cpp(checkpoint, spec)
    if engine == "transformers":
        return _transformers(checkpoint, spec, dtype)
    if engine == "bitsandbytes":
        return _bitsandbytes(checkpoint, "NF4" if spec is None else spec, dtype)
    return _vllm(checkpoint, spec, dtype)


def _llama_cpp(checkpoint: Checkpoint, spec: Spec | None) -> WeightBytes:
    if spec is None and checkpoint.kind == "gguf":
        tensors = [*checkpoint.tensors.values(), *checkpoint.extras.values()]
        summed = _summed((info, info.nbytes) for info in tensors)
        return WeightBytes(*summed, "as stored", float(round(8 * sum(summed[0].values()) / checkpoint.params)))
    if spec is None:  # what the converter makes of published weights: 16-bit floats stay, 8-bit ones become bfloat16
        widths = {info.name: 4 if info.encoding == "F32" else 2 for info in checkpoint.tensors.values()}
        label, formats_used = "as published", {}
        wide = widths.values()
        bits = 8.0 * (max(wide, key=list(wide).count) if widths else 2)
    else:
        plan = plan_for(checkpoint, spec)
        _refuse_families(plan, ("ggml", "float"), "llama.cpp")
        widths, label, formats_used, bits = {}, plan.name, plan.formats, _bits_named(plan)

    def size(info: TensorInfo) -> int:
        if info.name in formats_used:
            return _bytes_as(info, formats_used[info.name])
        if checkpoint.kind == "gguf":
            return info.nbytes
        if len(info.shape) == 1:
            return 4 * info.params  # the converter writes vectors in float32
        return widths.get(info.name, 0) * info.params or info.nbytes

    return WeightBytes(*_summed((info, size(info)) for info in checkpoint.tensors.values()), label, bits)


def _transformers(checkpoint: Checkpoint, spec: Spec | None, dtype: str) -> WeightBytes:
    width = WIDTHS[dtype]
    summed = _summed((info, width * info.params) for info in checkpoint.tensors.values())
    label, notes = dtype.upper(), _not_floats(checkpoint)
    if spec is not None:
        plan = plan_for(checkpoint, spec)
        if any(format.family != "float" for format in plan.formats.values()):
            notes += (f"transformers runs {plan.name} by decoded weights: they take the memory of {dtype.upper()}",)
            label = f"{plan.name} decoded to {dtype.upper()}"
    return WeightBytes(*summed, label, 8.0 * width, notes=notes)


def _bitsandbytes(checkpoint: Checkpoint, spec: Spec, dtype: str) -> WeightBytes:
    plan = plan_for(checkpoint, spec)
    _refuse_families(plan, ("bitsandbytes",), "bitsandbytes")
    width, notes = WIDTHS[dtype], _not_floats(checkpoint)
    left, largest = 0, 0
    sizes: list[tuple[TensorInfo, int]] = []
    for info in checkpoint.tensors.values():
        chosen = plan.formats.get(info.name)
        routed = _is_routed(info)
        if chosen is None or routed:
            sizes.append((info, width * info.params))
            left += routed and chosen is not None
            continue
        extra = STATE if chosen.name in ("NF4", "FP4") else 0
        sizes.append((info, _bytes_as(info, chosen) + extra))
        largest = max(largest, info.params)
    if left:
        notes += (f"transformers keeps experts in one {dtype.upper()} parameter, which bitsandbytes does not quantize",)
    return WeightBytes(*_summed(sizes), plan.name, _bits_named(plan), largest, notes)


def _vllm(checkpoint: Checkpoint, spec: Spec | None, dtype: str) -> WeightBytes:
    width = WIDTHS[dtype]
    notes: tuple[str, ...] = ("vLLM's work space is an estimate that was not held against a run of it",)
    if spec is None:
        sizes = [
            (info, width * info.params if info.encoding in FLOATS else info.nbytes)
            for info in (*checkpoint.tensors.values(), *checkpoint.extras.values())
        ]
        return WeightBytes(*_summed(sizes), "as published", 8.0 * width, notes=notes)
    plan = plan_for(checkpoint, spec)
    for format in plan.formats.values():
        if "vLLM" not in format.runs_on and format.family != "ggml":
            raise WorkbenchError(format.name, "vLLM does not run this format", allowed=_names_on("vLLM"))
    sizes = [
        (info, _bytes_as(info, plan.formats[info.name]) if info.name in plan.formats else width * info.params)
        for info in checkpoint.tensors.values()
    ]
    return WeightBytes(*_summed(sizes), plan.name, _bits_named(plan), notes=notes)


def _summed(sizes: Iterable[tuple[TensorInfo, int]]) -> tuple[dict[str, int], dict[int | None, int]]:
    """Bytes by part, and by layer."""
    parts: dict[str, int] = {}
    layers: dict[int | None, int] = {}
    for info, nbytes in sizes:
        part = part_of(info.name, info.shape)
        parts[part] = parts.get(part, 0) + nbytes
        layers[info.layer] = layers.get(info.layer, 0) + nbytes
    return {part: parts[part] for part in PARTS if parts.get(part)}, layers


def _bytes_as(info: TensorInfo, format: Format) -> int:
    *experts, rows, cols = info.shape
    return math.prod(experts) * format.nbytes((rows, cols))


def _is_routed(info: TensorInfo) -> bool:
    """Whether a tensor belongs to experts that only some tokens pass."""
    return part_of(info.name, info.shape) == "experts"


def _not_floats(checkpoint: Checkpoint) -> tuple[str, ...]:
    codes = sorted({info.encoding for info in checkpoint.tensors.values() if info.problem})
    if not codes:
        return ()
    return (f"some tensors are stored as {', '.join(codes)[:60]}, which this engine may hold in another size",)


def _refuse_families(plan: Plan, families: tuple[str, ...], engine: str) -> None:
    wrong = next((format for format in plan.formats.values() if format.family not in families), None)
    if wrong is not None:
        raise WorkbenchError(
            wrong.name,
            f"{engine} does not run this format",
            allowed=", ".join(name for name, format in formats.FORMATS.items() if format.family in families),
        )


def _names_on(engine: str) -> str:
    return ", ".join(name for name, format in formats.FORMATS.items() if engine in format.runs_on)


def _bits_named(plan: Plan) -> float:
    """The bits that a format's name speaks of (4 for Q4_K_M and NF4), which rules of thumb reckon with."""
    found = re.search(r"\d+", plan.name)
    return float(found[0]) if found and 1 <= int(found[0]) <= 64 else float(round(plan.bits))

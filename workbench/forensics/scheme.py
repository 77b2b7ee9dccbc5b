"""How a tensor is stored, in one word, its group and the bits of its codes, whatever the file's kind."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.formats import FORMATS
from workbench.formats.ggml import Ggml

FLOATS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}


@dataclass(frozen=True)
class Scheme:
    """How a tensor is stored.

    Attributes:
        name: "GPTQ 4-bit g128", "Q4_K", "BF16".
        bits: of a code, without its share of the scales; None: not known.
        group: what shares a scale: "128" inputs, "row", "tensor", "128 x 128"; "": nothing does.
        per_scale: inputs of a row that share one, for which weights are looked at together.
        kind: the same for all matrices that were stored alike; EXL2 gives each its own bits.
    """

    name: str
    bits: float | None
    group: str
    per_scale: int
    kind: str

    @property
    def quantized(self) -> bool:
        return self.name not in FLOATS


def scheme_of(checkpoint: Checkpoint, info: TensorInfo) -> Scheme:
    """The scheme of one of the checkpoint's tensors."""
    inputs = info.shape[-1] if info.shape else 1
    if info.packed is not None:
        kind = "EXL2" if info.encoding.startswith("EXL2") else info.encoding
        return Scheme(info.encoding, info.packed.code_bits, info.packed.shared, info.packed.per_scale, kind)
    if info.encoding.startswith("F8_") and not info.problem:
        group, per = _of_fp8(checkpoint, info)
        return Scheme(info.encoding, 8, group, per, f"{info.encoding} {group}")
    known = FORMATS.get(info.encoding)
    if isinstance(known, Ggml):
        return Scheme(known.name, float(int(known.bits)), str(known.block), known.block, known.name)
    return Scheme(info.encoding, FLOATS.get(info.encoding), "", inputs, info.encoding)


def _of_fp8(checkpoint: Checkpoint, info: TensorInfo) -> tuple[str, int]:
    inputs = info.shape[-1]
    scale = next(iter(checkpoint.held_in(info.name)[1:]), None)
    if scale is None:
        return "", inputs
    if scale.params == 1:
        return "tensor", inputs
    across = scale.shape[-1] if len(scale.shape) > 1 else 1
    if across <= 1:
        return "row", inputs
    per, down = -(-inputs // across), -(-info.shape[-2] // max(1, scale.shape[-2]))
    return f"{down} x {per}" if down > 1 else str(per), per

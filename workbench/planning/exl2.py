"""A plan as EXL2 takes it: bits per weight for each module of the layers, and for the head.

EXL2 mixes groups of 2, 3, 4, 5, 6 and 8 bits inside one matrix, so any number between is a mix; it chooses the groups
itself. It quantizes every matrix of a layer and keeps the embedding in float16
(https://github.com/turboderp-org/exllamav2, exllamav2/conversion).
"""

from __future__ import annotations

import re

from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.planning.mix import Plan

LEAST, MOST = 2.0, 8.0  # bits of a group's codes
WITH_SCALES = 8.5  # bits per weight of formats whose codes have 8: for EXL2 they are 8


def exl2_bits(plan: Plan) -> dict[str, float]:
    """Transformers' module name -> bits per weight, scales included, for every matrix that EXL2 quantizes.

    Raises:
        WorkbenchError: a matrix of a layer that the plan leaves as it is or gives less than 2 or more than 8 bits;
            experts kept as a stack.
    """
    found = {}
    for info in plan.checkpoint.matrices:
        if info.role == "embed_tokens" or (info.layer is None and info.name not in plan.formats):
            continue
        if len(info.shape) != 2:
            raise WorkbenchError(
                info.name, "it holds a layer's experts as one stack", do="plan the model's folder of safetensors"
            )
        module = re.sub(r"\.weight$", "", plan.checkpoint.hf_name(info.name))
        found[module] = _bits(info.name, plan.formats.get(info.name), info.layer is None)
    return found


def _bits(name: str, format: Format | None, head: bool) -> float:
    if format is None or format.family == "float":
        if head:
            return 16.0
        raise WorkbenchError(
            name,
            f"the plan leaves it {'as it is' if format is None else f'in {format.name}'}, and EXL2 quantizes every "
            "matrix of a layer",
            allowed="2 to 8 bits per weight",
            do="give it a format of 8 bits, such as Q8_0 or INT8",
        )
    if not LEAST <= format.bits <= WITH_SCALES:
        raise WorkbenchError(
            name,
            f"{format.name} has {format.bits:g} bits per weight",
            allowed="2 to 8 for EXL2",
            do="give it a format within that",
        )
    return min(format.bits, MOST)

"""Which tensors of a folder are one matrix together, and in which layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.checkpoint import names
from workbench.checkpoint.packed.awq import Awq
from workbench.checkpoint.packed.bitsandbytes import FourBit, Int8
from workbench.checkpoint.packed.compressed import Fp4, Integers, PackedIntegers
from workbench.checkpoint.packed.exl2 import Exl2
from workbench.checkpoint.packed.gptq import Gptq
from workbench.checkpoint.packed.layout import Packed
from workbench.checkpoint.packed.microscaled import Mxfp4
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>qweight|qzeros|scales|g_idx|q_weight|q_scale|q_scale_max|q_groups|q_invperm|q_perm"
    r"|weight_packed|weight_scale|weight_zero_point|weight_shape|weight_g_idx|weight_global_scale"
    r"|weight|weight\.(?:nested_)?(?:absmax|quant_map)|weight\.quant_state\.\w+|SCB|weight_format)"
)
_STACK = re.compile(r"(?P<module>.+)_(?P<part>blocks|scales)")
BY_METHOD = {"gptq": Gptq, "awq": Awq}  # which share their tensors' names


def joined(path: Path, config: Mapping[str, Any], tensors: list[TensorInfo]) -> list[TensorInfo]:
    """The tensors, those that are one matrix together replaced by that matrix.

    Raises:
        WorkbenchError: parts that are missing or do not fit each other, or a config that says nothing of them.
    """
    settings = config.get("quantization_config")
    settings = dict(settings) if isinstance(settings, Mapping) else {}
    made: dict[str, TensorInfo] = {}  # name of a part -> its matrix
    for module, parts in _modules(tensors).items():
        layout = _layout(path, module, parts, settings)
        if layout is None:
            continue
        name = module if layout is Mxfp4 else f"{module}.weight"
        missing = [part for part in layout.NEEDED if part not in parts]
        if missing:
            raise WorkbenchError(
                f"{path.name}, {module}",
                f"its {', '.join(missing)} is missing, beside {', '.join(sorted(parts))}",
                do="get the file again from its author",
            )
        matrix = layout.of(name, parts, _settings_of(settings, parts))
        made |= dict.fromkeys((info.name for info in parts.values()), _info(matrix))
    return list({info.name: info for info in (made.get(each.name, each) for each in tensors)}.values())


def _modules(tensors: Iterable[TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    found: dict[str, dict[str, TensorInfo]] = {}
    for info in tensors:
        split = _PART.fullmatch(info.name) or _STACK.fullmatch(info.name)
        if split:
            found.setdefault(split["module"], {})[split["part"]] = info
    return found


def _layout(
    path: Path, module: str, parts: Mapping[str, TensorInfo], settings: Mapping[str, Any]
) -> type[Packed] | None:
    """The layout that these parts are in; None: an ordinary matrix."""
    weight = parts["weight"].encoding if "weight" in parts else ""
    if "qweight" in parts:
        method = str(settings.get("quant_method", "")).lower()
        if method not in BY_METHOD:
            said = f"says {method[:40]!r}" if method else "has no quantization_config"
            raise WorkbenchError(
                path / "config.json",
                f"it {said}, and {module} is packed as GPTQ or AWQ pack weights",
                allowed='"quant_method": "gptq" or "awq"',
                do="get config.json again from the model's author",
            )
        return BY_METHOD[method]
    if "q_weight" in parts:
        return Exl2
    if "weight_packed" in parts:
        return Fp4 if parts["weight_packed"].encoding == "U8" else PackedIntegers
    if "blocks" in parts and "scales" in parts:
        return Mxfp4
    if "weight.absmax" in parts:
        return FourBit
    if weight == "I8":
        return Int8 if "SCB" in parts else Integers
    return None


def _settings_of(settings: Mapping[str, Any], parts: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The config's settings; of compressed-tensors' groups those whose bits fit the parts."""
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or "weight_packed" not in parts:
        return dict(settings)
    weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
    bits = [each.get("num_bits") for each in weights if isinstance(each, Mapping)]
    whole = [each for each in bits if type(each) is int and 1 <= each <= 8]
    fitting = [each for each in whole if PackedIntegers.fits(parts, each)]
    return {"num_bits": next(iter([*fitting, *whole]), None)}


def _info(matrix: Packed) -> TensorInfo:
    first = next(iter(matrix.parts.values()))
    layer, role = names.place(matrix.name)
    nbytes = sum(info.nbytes for info in matrix.parts.values())
    made = TensorInfo(matrix.name, matrix.shape, matrix.scheme, nbytes, first.file, first.offset, layer, role)
    return replace(made, packed=matrix)

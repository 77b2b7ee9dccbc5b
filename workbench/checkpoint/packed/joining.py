"""Which tensors of a folder are one matrix, and in which layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.checkpoint import names
from workbench.checkpoint.packed.awq import Awq
from workbench.checkpoint.packed.bitsandbytes import FourBit, Int8
from workbench.checkpoint.packed.compressed import Fp4, Integers, ModelOptFp4, PackedIntegers
from workbench.checkpoint.packed.exl2 import Exl2
from workbench.checkpoint.packed.gptq import Gptq
from workbench.checkpoint.packed.hqq import Hqq
from workbench.checkpoint.packed.layout import Packed
from workbench.checkpoint.packed.microscaled import Mxfp4
from workbench.checkpoint.packed.settings import Settings
from workbench.checkpoint.packed.torchao import TorchAo
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>qweight|qzeros|scales|g_idx|q_weight|q_scale|q_scale_max|q_groups|q_invperm|q_perm"
    r"|weight_packed|weight_scale|weight_zero_point|weight_shape|weight_g_idx|weight_global_scale|weight_scale_2"
    r"|_weight_(?:qdata|scale|zero_point|per_tensor_scale|act_pre_scale|scale_and_zero)"
    r"|W_q|scale|zero|shape|packing|nbits|group_size|axis|view_as_float|unpack_view_dtype|quant_scale|quant_zero"
    r"|compute_dtype|offload_meta|encoded_state_dict|stores_quant_config|channel_wise|optimize|round_zero"
    r"|weight|weight\.(?:nested_)?(?:absmax|quant_map)|weight\.quant_state\.\w+|SCB|weight_format)"
)
_STACK = re.compile(r"(?P<module>.+)_(?P<part>blocks|scales)")
# Layout -> the methods of config.json that it may come with
METHODS: dict[type[Packed], tuple[str, ...]] = {
    Gptq: ("gptq",),
    Awq: ("awq",),
    Exl2: ("exl2",),
    PackedIntegers: ("compressed-tensors",),
    Integers: ("compressed-tensors",),
    Fp4: ("compressed-tensors",),
    ModelOptFp4: ("modelopt", "modelopt_fp4"),
    FourBit: ("bitsandbytes",),
    Int8: ("bitsandbytes",),
    Mxfp4: ("mxfp4",),
    Hqq: ("hqq",),
    TorchAo: ("torchao",),
}
KNOWN = {method for methods in METHODS.values() for method in methods} | {"fp8", "fbgemm_fp8"}
BY_METHOD: dict[str, type[Packed]] = {"gptq": Gptq, "awq": Awq}  # which share their tensors' names
SIGNS = ("qweight", "q_weight", "weight_packed", "weight.absmax", "W_q", "_weight_qdata", "weight_scale_2")
# A part that no ordinary tensor is called -> the one without which it means nothing
ORPHANS = {
    **{"qzeros": "qweight", "g_idx": "qweight", "SCB": "weight"},
    **dict.fromkeys(("q_scale", "q_scale_max", "q_groups", "q_invperm", "q_perm"), "q_weight"),
    **dict.fromkeys(("weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale"), "weight_packed"),
    "_weight_scale": "_weight_qdata",
    **dict.fromkeys(("weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"), "weight.absmax"),
}


def joined(
    path: Path, config: Mapping[str, Any], tensors: list[TensorInfo], *, headers: bool = False
) -> list[TensorInfo]:
    """The tensors, those that are one matrix together replaced by that matrix.

    Args:
        headers: there is nothing else of the files, such as of a model on the hub: shapes that are values are sketched.

    Raises:
        WorkbenchError: parts that are missing or do not fit each other, or a config that says nothing of them or
            something else.
    """
    made: dict[str, TensorInfo] = {}  # name of a part -> its matrix
    settings: Settings | None = None
    for module, parts in _modules(tensors).items():
        if not _is_packed(parts):
            continue
        settings = settings or Settings.of(path, config)
        layout = _layout(module, parts, settings)
        if layout is None:
            continue
        _check(path, module, layout, parts, settings)
        name = module if layout is Mxfp4 else f"{module}.weight"
        make = layout.sketch if headers else layout.of
        matrix = make(name, parts, settings.of_module(module))
        made |= dict.fromkeys((info.name for info in parts.values()), _info(matrix))
    return list({info.name: info for info in (made.get(each.name, each) for each in tensors)}.values())


def _modules(tensors: Iterable[TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    found: dict[str, dict[str, TensorInfo]] = {}
    for info in tensors:
        split = _PART.fullmatch(info.name) or _STACK.fullmatch(info.name)
        if split:
            found.setdefault(split["module"], {})[split["part"]] = info
    return found


def _is_packed(parts: Mapping[str, TensorInfo]) -> bool:
    """Whether parts are of a packed matrix, though some have ordinary names."""
    if {"blocks", "scales"} <= set(parts) or ("weight" in parts and parts["weight"].encoding == "I8"):
        return True
    return any(part in ORPHANS or part in SIGNS for part in parts)


def _layout(module: str, parts: Mapping[str, TensorInfo], settings: Settings) -> type[Packed] | None:
    """The layout that these parts are in; None: an ordinary matrix."""
    if "qweight" in parts:
        if settings.method not in BY_METHOD:
            said = f"says {settings.method!r}" if settings.method else "has no quantization_config"
            raise WorkbenchError(
                settings.place,
                f"it {said}, and {module} is packed as GPTQ or AWQ pack weights",
                allowed='"quant_method": "gptq" or "awq"',
                do="get config.json again from the model's author",
            )
        return BY_METHOD[settings.method]
    if "q_weight" in parts:
        return Exl2
    if "W_q" in parts:
        return Hqq
    if "_weight_qdata" in parts:
        return TorchAo
    if "weight_packed" in parts:
        return Fp4 if parts["weight_packed"].encoding == "U8" else PackedIntegers
    if "blocks" in parts and "scales" in parts:
        return Mxfp4
    if "weight.absmax" in parts:
        return FourBit
    if "weight_scale_2" in parts and "weight" in parts and parts["weight"].encoding == "U8":
        return ModelOptFp4
    if "weight" in parts and parts["weight"].encoding == "I8":
        return Int8 if "SCB" in parts else Integers
    orphan = next((part for part in parts if part in ORPHANS), None)
    if orphan is not None:
        raise _missing(settings.place.parent, module, [ORPHANS[orphan]], parts)
    return None


def _check(path: Path, module: str, layout: type[Packed], parts: Mapping[str, TensorInfo], settings: Settings) -> None:
    """Raise unless all parts of a layout are there, none of another, and the config speaks of the same."""
    missing = [part for part in layout.NEEDED if part not in parts]
    if missing:
        raise _missing(path, module, missing, parts)
    others = [part for part in parts if part not in (*layout.NEEDED, *layout.OPTIONAL) and not _is_state(part)]
    if others:
        raise WorkbenchError(
            f"{path.name}, {module}",
            f"it has {', '.join(sorted(others))} beside {', '.join(layout.NEEDED)}: a mix of formats in one matrix",
            do="get the file again from its author",
        )
    empty = next((info for info in parts.values() if info.params == 0), None)
    if empty is not None:
        raise WorkbenchError(f"{empty.file.name}, tensor {empty.name!r}", f"it is empty: {list(empty.shape)}")
    if settings.method in KNOWN and settings.method not in METHODS[layout]:
        theirs = f"{', '.join(layout.NEEDED)}, as {METHODS[layout][0]} packs weights"
        raise settings.wrong(
            "quant_method",
            f"it is {settings.method!r}, and {module} has {theirs}",
            " or ".join(METHODS[layout]),
        )


def _is_state(part: str) -> bool:
    return part.startswith("weight.quant_state.")


def _missing(path: Path, module: str, missing: list[str], parts: Mapping[str, TensorInfo]) -> WorkbenchError:
    return WorkbenchError(
        f"{path.name}, {module}",
        f"its {', '.join(missing)} is missing, beside {', '.join(sorted(parts))}",
        do="get the file again from its author",
    )


def _info(matrix: Packed) -> TensorInfo:
    first = next(iter(matrix.parts.values()))
    layer, role = names.place(matrix.name)
    nbytes = sum(info.nbytes for info in matrix.parts.values())
    made = TensorInfo(matrix.name, matrix.shape, matrix.scheme, nbytes, first.file, first.offset, layer, role)
    return replace(made, packed=matrix)

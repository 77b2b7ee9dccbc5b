"""`quantization_config`: what config.json says of a folder's weights, so that transformers and vLLM know them.

compressed-tensors (https://github.com/vllm-project/compressed-tensors) has a group for each scheme, with the modules it
is for; with one group alone that is every linear layer, with several each is named: vLLM, asking for the group of
layers that it has fused, would take the one of "Linear" before it looked for their names. bitsandbytes has one scheme
and a list of what is left, where vLLM looks for the names of fused layers too (its is_layer_skipped_bnb).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from importlib import metadata
from typing import Any

from workbench.allocation.groups import ONE_PRODUCT, fused
from workbench.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.formats.fp8 import TILE
from workbench.quantizing.parts import Bytes, Float8, HalfBytes, Stored, Tiles, Words

LAYOUTS: dict[type[Stored], str] = {
    Float8: "float-quantized",
    Tiles: "float-quantized",
    Bytes: "int-quantized",
    Words: "pack-quantized",
    HalfBytes: "pack-quantized",
}
FUSED = {"qkv": "qkv_proj", "up": "gate_up_proj"}  # vLLM's names
BY_TOKEN = {"symmetric": True, "strategy": "token", "dynamic": True}  # activations: a scale for each token, as it comes

BY_TILE = {
    "symmetric": True,
    "strategy": "group",
    "group_size": TILE,
    "dynamic": True,
}  # for each 128 inputs of a token


def config(model: Checkpoint, matrices: Mapping[str, Stored]) -> dict[str, Any]:
    """The settings for these matrices of `model`; the linear layers that are not among them are named as left alone.

    Raises:
        WorkbenchError: formats of two libraries, several of bitsandbytes, or different ones where vLLM fuses.
    """
    methods = sorted({each.method for each in matrices.values()})
    if len(methods) > 1:
        raise WorkbenchError(
            "plan",
            f"it mixes formats of {' and '.join(methods)}",
            do="keep to those of one: a checkpoint has one loader",
        )
    left = [info.name for info in model.matrices if info.name not in matrices and info.role != "embed_tokens"]
    if model.tied_head:
        left.append("lm_head.weight")  # which is not in the file, and is a linear layer all the same
    ignored = sorted({module_of(model, name) for name in left})
    check_fused(model, {name: each.format for name, each in matrices.items()})
    if methods == ["bitsandbytes"]:
        return _bitsandbytes(matrices, [*ignored, *fused_modules(model, left)])
    return _compressed(model, matrices, ignored)


def check_fused(model: Checkpoint, used: Mapping[str, Format]) -> None:
    """Raise for matrices that vLLM multiplies by at once and that have different formats, none being one."""
    kinds = list(set(used.values()))
    for names in fused(model.matrices, kinds):
        found = {name: used[name].name if name in used else "as it is" for name in names}
        if len(set(found.values())) > 1:
            said = ", ".join(f"{name}: {kind}" for name, kind in found.items())
            raise WorkbenchError(
                names[0],
                f"vLLM multiplies by {len(names)} matrices at once, which have different formats ({said:.300})",
                do="give them one format; wb.plan does for formats of vLLM, and together=[patterns] makes it",
            )


def fused_modules(model: Checkpoint, names: Collection[str]) -> dict[str, list[str]]:
    """vLLM's names for the layers it makes of these matrices alone -> the matrices that each is made of."""
    parts: dict[str, list[str]] = defaultdict(list)
    for info in model.matrices:
        if info.role in ONE_PRODUCT and ".experts." not in info.name:
            parent = module_of(model, info.name).rpartition(".")[0]
            parts[f"{parent}.{FUSED[ONE_PRODUCT[info.role]]}"].append(info.name)
    return {module: found for module, found in parts.items() if all(name in names for name in found)}


def _bitsandbytes(matrices: Mapping[str, Stored], ignored: list[str]) -> dict[str, Any]:
    kinds = sorted({each.format.name for each in matrices.values()})
    if len(kinds) > 1:
        raise WorkbenchError(
            "plan",
            f"it mixes {' and '.join(kinds)}",
            do="bitsandbytes has one format for a model, and those left as they are",
        )
    four = kinds[0] != "LLM.int8"
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "llm_int8_skip_modules": ignored,
        "llm_int8_threshold": 6.0,
        **(
            {
                "bnb_4bit_quant_type": kinds[0].lower(),
                "bnb_4bit_use_double_quant": False,
                "bnb_4bit_compute_dtype": "bfloat16",
                "bnb_4bit_quant_storage": "uint8",
            }
            if four
            else {}
        ),
    }


def _compressed(model: Checkpoint, matrices: Mapping[str, Stored], ignored: list[str]) -> dict[str, Any]:
    by_format: dict[Format, list[str]] = defaultdict(list)
    for name, each in matrices.items():
        by_format[each.format].append(name)
    groups, layouts = {}, set()
    for number, format in enumerate(by_format):
        example = matrices[by_format[format][0]]
        layouts.add(LAYOUTS[type(example)])
        named = sorted(module_of(model, name) for name in by_format[format])
        targets = ["Linear"] if len(by_format) == 1 else named
        groups[f"group_{number}"] = {"targets": targets, **_scheme(example)}
    return {
        "quant_method": "compressed-tensors",
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": _version(),
    }


def _scheme(example: Stored) -> dict[str, Any]:
    kind, layout = type(example), LAYOUTS[type(example)]
    group = getattr(example.format, "group", None)
    floats = kind in (Float8, Tiles)
    number = {"num_bits": getattr(example, "bits", 8), "type": "float" if floats else "int"}
    by = {"strategy": "group", "group_size": group} if group else {"strategy": "channel", "group_size": None}
    if kind is Tiles:
        by = {"strategy": "block", "block_structure": [TILE, TILE], "group_size": None}
    weights = {**number, "symmetric": kind is not HalfBytes, **by, "dynamic": False}
    inputs = {**number, **(BY_TILE if kind is Tiles else BY_TOKEN)} if floats or kind is Bytes else None
    return {"weights": weights, "input_activations": inputs, "output_activations": None, "format": layout}


def module_of(model: Checkpoint, name: str) -> str:
    """transformers' name of the module that a tensor is the weight of."""
    return re.sub(r"\.weight$", "", model.hf_names.get(name, name))


def _version() -> str:
    """compressed-tensors' version where it is installed, else one that knows all of this."""
    try:
        return metadata.version("compressed-tensors")
    except metadata.PackageNotFoundError:
        return "0.12.0"

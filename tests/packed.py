"""Tiny whole models in each packed layout: folders such as a stranger would have published them.

    packed.folder(tmp_path / "gptq", "GPTQ", tiny.weights())     # config.json, tokenizer, model.safetensors

The packers here are written after the layouts' descriptions, bit by bit and apart from the readers; what the layouts'
own libraries write is read in tests/checkpoint/test_packed.py. They round to nearest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests import tiny

GROUP = 32
Parts = dict[str, np.ndarray]


def bits_of(codes: np.ndarray, bits: int) -> np.ndarray:
    """[rows, codes] as a little-endian stream of `bits` bits each, int32 [rows, words]."""
    spread = (codes[..., None].astype(np.uint8) >> np.arange(bits, dtype=np.uint8)) & 1
    packed = np.packbits(spread.reshape(len(codes), -1), axis=1, bitorder="little")
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    return np.ascontiguousarray(packed).view("<i4")


def rounded(weights: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [out, in], scales and zero points [out, groups], asymmetric, to nearest."""
    parts = weights.reshape(len(weights), -1, group)
    low, high = parts.min(-1).clip(max=0), parts.max(-1).clip(min=0)
    scales = ((high - low) / (2**bits - 1)).astype(np.float16).astype(np.float32)
    scales[scales == 0] = 1
    zeros = np.rint(-low / scales).clip(1, 2**bits - 1)
    codes = np.rint(parts / scales[..., None] + zeros[..., None]).clip(0, 2**bits - 1)
    return codes.reshape(weights.shape).astype(int), scales, zeros.astype(int)


def gptq(weights: np.ndarray, bits: int = 4) -> Parts:
    codes, scales, zeros = rounded(weights, bits, GROUP)
    return {
        "qweight": np.ascontiguousarray(bits_of(codes, bits).T),
        "qzeros": bits_of(zeros.T - 1, bits),
        "scales": np.ascontiguousarray(scales.T.astype(np.float16)),
        "g_idx": (np.arange(weights.shape[1]) // GROUP).astype(np.int32),
    }


def awq(weights: np.ndarray) -> Parts:
    def words(codes: np.ndarray) -> np.ndarray:
        return bits_of(codes.reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]], 4).reshape(len(codes), -1)

    codes, scales, zeros = rounded(weights, 4, GROUP)
    return {
        "qweight": words(codes.T),
        "qzeros": words(zeros.T),
        "scales": np.ascontiguousarray(scales.T.astype(np.float16)),
    }


def exl2(weights: np.ndarray) -> Parts:
    """The first half of the inputs in 5 bits, the others in 3, after a permutation."""
    inputs = weights.shape[1]
    order = np.random.default_rng(0).permutation(inputs)
    half = inputs // 2
    rows, starts, roots, most = [], [], [], []
    for bits, some in ((5, order[:half]), (3, order[half:])):
        part = weights[:, some]
        step = np.abs(part).max(1) / (2 ** (bits - 1) - 1)
        top = np.float16(step.max())
        root = np.ceil(np.sqrt(step / float(top)) * 16).clip(1, 16)
        codes = np.rint(part / (root**2 * float(top) / 256)[:, None]).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        starts += [bits, sum(len(each) for each in rows)]
        rows.append(bits_of(codes.astype(int) + 2 ** (bits - 1), bits).T)
        roots.append(root.astype(int) - 1)
        most.append(top)
    return {
        "q_weight": np.ascontiguousarray(np.concatenate(rows)),
        "q_scale": bits_of(np.stack(roots), 4),
        "q_scale_max": np.array(most, np.float16),
        "q_groups": np.array(starts, np.int16),
        "q_invperm": np.argsort(order).astype(np.int32),
    }


def compressed(weights: np.ndarray) -> Parts:
    parts = weights.reshape(len(weights), -1, GROUP)
    scales = (np.abs(parts).max(-1) / 7).astype(np.float32)
    codes = np.rint(parts / scales[..., None]).clip(-8, 7).reshape(weights.shape).astype(int)
    return {
        "weight_packed": bits_of(codes + 8, 4),
        "weight_scale": scales.astype(ml_dtypes.bfloat16),
        "weight_shape": np.array(weights.shape, np.int64),
    }


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def fp4(values: np.ndarray) -> np.ndarray:
    """Values up to 6 as two codes in a byte, the first in the low half."""
    codes = np.abs(np.abs(values)[..., None] - FP4).argmin(-1) + 8 * (values < 0)
    return (codes[..., ::2] + 16 * codes[..., 1::2]).astype(np.uint8)


def nvfp4(weights: np.ndarray) -> Parts:
    over = np.float32(448 * 6 / np.abs(weights).max())
    parts = weights.reshape(len(weights), -1, 16)
    scales = (np.abs(parts).max(-1) / 6 * over).astype(ml_dtypes.float8_e4m3fn)
    values = parts / np.maximum(scales.astype(np.float32) / over, 1e-9)[..., None]
    return {
        "weight_packed": fp4(values.reshape(weights.shape)),
        "weight_scale": scales,
        "weight_global_scale": np.array([over]),
    }


def modelopt(weights: np.ndarray) -> Parts:
    found = nvfp4(weights)
    second = np.array(1 / found["weight_global_scale"][0], np.float32)
    return {"weight": found["weight_packed"], "weight_scale": found["weight_scale"], "weight_scale_2": second}


def hqq(weights: np.ndarray) -> Parts:
    """4 bits in groups of inputs, as HQQ's library names and packs them; a setting is a tensor, a word its letters."""
    codes, scales, zeros = rounded(weights, 4, GROUP)
    table = codes.reshape(-1, GROUP).astype(np.uint8)
    half = len(table) // 2
    return {
        "W_q": table[:half] << 4 | table[half:],
        "scale": scales.reshape(-1, 1).astype(np.float16),
        "zero": zeros.reshape(-1, 1).astype(np.float16),
        "shape": np.array(weights.shape, np.int64),
        "group_size": np.array(GROUP, np.int32),
        "nbits": np.array(4, np.int32),
        "axis": np.array(1, np.int32),
        "packing": np.frombuffer(b"4bit_u8", np.uint8),
        "compute_dtype": np.frombuffer(b"torch.float16", np.uint8),
        "quant_scale": np.array(0, np.uint8),
        "quant_zero": np.array(0, np.uint8),
    }


def torchao(weights: np.ndarray) -> Parts:
    most = np.abs(weights).max(1, keepdims=True)
    return {"_weight_qdata": np.rint(weights / most * 127).astype(np.int8), "_weight_scale": most / 127}


def nf4(weights: np.ndarray) -> Parts:
    import torch
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(
        torch.from_numpy(weights), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    parts = {f"weight.{name}": tensor.numpy() for name, tensor in state.as_dict(packed=True).items()}
    return {"weight": codes.numpy(), **parts}


def int8(weights: np.ndarray) -> Parts:
    most = np.abs(weights).max(1)
    return {"weight": np.rint(weights * (127 / most)[:, None]).astype(np.int8), "SCB": most}


def fp8(weights: np.ndarray) -> Parts:
    scales = np.abs(weights).max(1, keepdims=True) / 448
    return {"weight": (weights / scales).astype(ml_dtypes.float8_e4m3fn), "weight_scale": scales}


def fp8_blocks(weights: np.ndarray) -> Parts:
    rows, cols = (-(-size // 128) for size in weights.shape)
    scales = np.empty((rows, cols), np.float32)
    codes = np.empty(weights.shape, ml_dtypes.float8_e4m3fn)
    for row, col in np.ndindex(rows, cols):
        part = slice(128 * row, 128 * row + 128), slice(128 * col, 128 * col + 128)
        scales[row, col] = np.abs(weights[part]).max() / 448
        codes[part] = (weights[part] / scales[row, col]).astype(ml_dtypes.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}


def mxfp4(stack: np.ndarray) -> Parts:
    """A stack of experts [experts, in, out] as gpt-oss publishes it."""
    parts = stack.swapaxes(1, 2).reshape(len(stack), stack.shape[2], -1, 32)
    exponents = np.ceil(np.log2(np.abs(parts).max(-1) / 6)).astype(int)
    return {"blocks": fp4(parts / np.exp2(exponents)[..., None]), "scales": (exponents + 127).astype(np.uint8)}


GROUPS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True}}}
KINDS: dict[str, tuple[Callable[[np.ndarray], Parts], dict[str, Any], int]] = {
    # name -> (packer of a matrix, quantization_config, bits of a code)
    "GPTQ": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq"}, 4),
    "AWQ": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}, 4),
    "EXL2": (exl2, {"quant_method": "exl2", "version": "0.3.2", "bits": 4.0}, 4),
    "compressed": (compressed, {"quant_method": "compressed-tensors", "config_groups": GROUPS}, 4),
    "NVFP4": (nvfp4, {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, 4),
    "ModelOpt": (modelopt, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4),
    "HQQ": (hqq, {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}, 4),
    "torchao": (torchao, {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, 8),
    "NF4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 4),
    "LLM.int8": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
    "FP8": (fp8, {"quant_method": "compressed-tensors", "format": "float-quantized"}, 8),
    "FP8 blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
}


def tensors(kind: str, weights: Mapping[str, np.ndarray]) -> Parts:
    """The model's tensors, those of its layers' matrices packed, the others in bfloat16."""
    pack, _, _ = KINDS[kind]
    found: Parts = {}
    for name, values in weights.items():
        if ".layers." in name and values.ndim == 2:
            module = name.removesuffix(".weight")
            found |= {f"{module}.{part}": array for part, array in pack(values).items()}
        else:
            found[name] = values.astype(ml_dtypes.bfloat16)
    return found


def folder(path: Path, kind: str, weights: Mapping[str, np.ndarray], **changes: np.ndarray) -> Path:
    """Write a model in a layout; `changes` are tensors that replace others, or come beside them."""
    config = tiny.llama_config(weights) | {"quantization_config": KINDS[kind][1]}
    return written(path, tensors(kind, weights) | changes, config)


def written(path: Path, found: Mapping[str, np.ndarray], config: Mapping[str, Any], *, tokenizer: bool = True) -> Path:
    """A folder with these tensors, this config and the tiny tokenizer."""
    from safetensors.numpy import save

    path.mkdir(parents=True, exist_ok=True)
    if tokenizer:
        tiny.write_tokenizer(path)
    (path / "config.json").write_text(json.dumps(config))
    raw = bytearray(save({name: plain(np.ascontiguousarray(array)) for name, array in found.items()}))
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, array in found.items():  # older versions of the library know no 8-bit floats of numpy
        header[name]["dtype"] = NARROW.get(array.dtype.name, header[name]["dtype"])
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return path


NARROW = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bfloat16": "BF16"}


def plain(array: np.ndarray) -> np.ndarray:
    """Bytes in the stead of floats that the library may not know."""
    if array.dtype.name in NARROW:
        return array.view(np.uint8 if array.dtype.itemsize == 1 else np.uint16)
    return array

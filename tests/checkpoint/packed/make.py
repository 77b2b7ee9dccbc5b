"""Make the files beside this one anew: a small matrix in each layout, written and decoded by the layout's own library.

    python make.py FOLDER [NAMES]

Needs gptqmodel 7.7 (pip install --no-deps, and what it imports), compressed-tensors 0.20, hqq 0.2.8 and torchao 0.18.
Run once; the tests read what it wrote. Each file has one matrix's tensors under the library's names, and `expected`
[out, in], which the library gives back.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

OUT, IN = 32, 64
L = "model.layers.0.mlp.up_proj"


def weights() -> torch.Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)) * 0.05


def grouped(bits: int, group: int, *, some_zero: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points [out, groups], asymmetric; some zero points are 0, which a version-1 file wraps."""
    parts = weights().view(OUT, -1, group)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    if some_zero:
        low[::7] = 0
    scales = ((high - low) / (2**bits - 1)).half().float()
    return scales, torch.round(-low / scales).clamp(0, 2**bits - 1)


def linear() -> torch.nn.Linear:
    made = torch.nn.Linear(IN, OUT, bias=False)
    made.weight.data = weights()
    return made


def gptq(bits: int, version: int, shuffled: bool) -> dict[str, torch.Tensor]:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    group = 16 if bits != 3 else 32
    made = TorchLinear(bits=bits, group_size=group, sym=False, desc_act=shuffled, in_features=IN, out_features=OUT)
    index = torch.arange(IN) // group
    if shuffled:
        index = index[torch.randperm(IN, generator=torch.Generator().manual_seed(1))]
    made.pack_original(linear(), *grouped(bits, group), index.to(torch.int32))
    found = {name: getattr(made, name).clone() for name in ("qweight", "scales", "g_idx")}
    expected = dequantized_gptq(made, index)
    if version == 1:
        convert_gptq_v2_to_v1_format_module(made, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
    return {**found, "qzeros": made.qzeros.clone(), "expected": expected}


def dequantized_gptq(made, index: torch.Tensor) -> torch.Tensor:
    """By the library's own unpacking; in float32, since its forward pass rounds to float16."""
    from gptqmodel.utils.model_dequant import unpack_cols, unpack_rows

    q, z = unpack_rows(made.qweight, made.bits), unpack_cols(made.qzeros, made.bits)
    return ((q.float() - z.float()[index]) * made.scales.float()[index]).T.contiguous()


def awq(gemv: bool) -> dict[str, torch.Tensor]:
    from gptqmodel.nn_modules.qlinear.gemm_awq import _pack_awq_columns
    from gptqmodel.nn_modules.qlinear.gemv_awq import AwqGEMVLinear, calculate_zeros_width

    group = 64 if gemv else 16
    scales, zeros = grouped(4, group, some_zero=not gemv)  # the GEMV packer does not clip
    index = torch.arange(IN) // group
    q = torch.round(weights() / scales[:, index] + zeros[:, index]).clamp(0, 15).to(torch.int32)
    expected = (q.float() - zeros[:, index]) * scales[:, index]
    if not gemv:
        packed = {
            "qweight": _pack_awq_columns(q.T.contiguous(), 4),
            "qzeros": _pack_awq_columns(zeros.T.int().contiguous(), 4),
        }
        return {**packed, "scales": scales.T.half().contiguous(), "expected": expected}
    made = AwqGEMVLinear.__new__(AwqGEMVLinear)
    torch.nn.Module.__init__(made)
    made.bits, made.group_size, made.in_features, made.out_features = 4, group, IN, OUT
    assert calculate_zeros_width(IN, group)
    AwqGEMVLinear.pack(made, linear(), scales, zeros)
    found = {name: getattr(made, name).clone() for name in ("qweight", "qzeros", "scales")}
    return {**found, "expected": expected}


def compressed(bits: int, symmetric: bool, group: int | None) -> dict[str, torch.Tensor]:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    size = group or IN
    if symmetric:
        scales = weights().view(OUT, -1, size).abs().amax(-1) / (2 ** (bits - 1))
        zeros = torch.zeros_like(scales, dtype=torch.int8)
    else:
        scales, zeros = grouped(bits, size)
        zeros = (zeros - 2 ** (bits - 1)).to(torch.int8)
    kind = {"strategy": "group", "group_size": size} if group else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, **kind)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    state = {"weight": weights(), "weight_scale": scales, "weight_zero_point": zeros}
    made = PackedQuantizationCompressor.compress(state, scheme)
    expected = PackedQuantizationCompressor.decompress(made, scheme)["weight"]
    return {**made, "expected": expected.float()}


def nvfp4() -> dict[str, torch.Tensor]:
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    over = torch.tensor([448 * 6 / weights().abs().max()])
    scales = (weights().view(OUT, -1, 16).abs().amax(-1) / 6 * over).to(torch.float8_e4m3fn).float()
    args = QuantizationArgs(num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16)
    state = {"weight": weights(), "weight_scale": scales, "weight_global_scale": over}
    made = NVFP4PackedCompressor.compress(state, QuantizationScheme(targets=["Linear"], weights=args))
    codes = unpack_fp4_from_uint8(made["weight_packed"], OUT, IN, dtype=torch.float32)
    return {**made, "expected": codes * (scales / over).repeat_interleave(16, 1)}  # its own is in bfloat16


def plain(kind: str, **how) -> dict[str, torch.Tensor]:
    """A code for each weight, unpacked: FP8 and INT8 in each strategy, and MXFP8."""
    from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
    from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    symmetric, size = how.get("symmetric", True), how.get("group_size", IN)
    args = QuantizationArgs(num_bits=8, type=kind, **how)
    tiles = {"tensor": (OUT, IN), "channel": (1, IN), "group": (1, size), "block": how.get("block_structure")}
    rows, cols = tiles[how["strategy"]]
    parts = weights().view(OUT // rows, rows, IN // cols, cols)
    most, zeros = (448 if kind == "float" else 127), None
    scales = parts.abs().amax((1, 3)) / most
    if not symmetric:
        low, high = parts.amin((1, 3)).clamp(max=0), parts.amax((1, 3)).clamp(min=0)
        scales = (high - low) / 255
        zeros = torch.round(-128 - low / scales).clamp(-128, 127).to(torch.int8)
    made = MXFP8QuantizationCompressor if how.get("scale_dtype") else NaiveQuantizationCompressor
    if how.get("scale_dtype"):
        scales = 2.0 ** torch.ceil(torch.log2(scales))
    scales = scales.reshape(1) if how["strategy"] == "tensor" else scales
    state = {"weight": weights(), "weight_scale": scales, "weight_zero_point": zeros}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    found = made.compress({name: value for name, value in state.items() if value is not None}, scheme)
    return {**found, "expected": made.decompress(found, scheme)["weight"].float()}


def finegrained(scale_fmt: str) -> dict[str, torch.Tensor]:
    """FP8 in tiles, by transformers."""
    from transformers.integrations.finegrained_fp8 import Fp8Quantize, _dequantize_fp8_weight

    config = SimpleNamespace(weight_block_size=[16, 32], scale_fmt=scale_fmt)
    made = Fp8Quantize(SimpleNamespace(quantization_config=config)).convert({"weight": weights()})
    expected = _dequantize_fp8_weight(made["weight"], made["weight_scale_inv"], [16, 32], torch.float32)
    return {**made, "expected": expected}


def hqq(bits: int, axis: int) -> dict[str, torch.Tensor]:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    config = BaseQuantizeConfig(nbits=bits, group_size=16, axis=axis)
    made = HQQLinear(linear(), config, compute_dtype=torch.float16, device="cpu")
    wide = {key: value.float() if isinstance(value, torch.Tensor) else value for key, value in made.meta.items()}
    expected = Quantizer.dequantize(made.W_q, {**wide, "compute_dtype": torch.float32})
    return {**{key: value.detach() for key, value in made.state_dict().items()}, "expected": expected}


def torchao(kind: str) -> dict[str, torch.Tensor]:
    from torchao import quantization as library
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    made = torch.nn.ModuleDict({"up": linear()})
    config = {
        "int8": lambda: library.Int8WeightOnlyConfig(version=2),
        "float8": lambda: library.Float8WeightOnlyConfig(),
        "int4": lambda: library.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=library.PerGroup(16), mapping_type=library.MappingType.ASYMMETRIC
        ),
    }[kind]()
    library.quantize_(made, config)
    found, _ = flatten_tensor_state_dict(made.state_dict())
    return {
        **{key.removeprefix("up."): value for key, value in found.items()},
        "expected": made["up"].weight.dequantize().float().detach(),
    }


MADE = {
    **{f"gptq-v1-{bits}bit": lambda bits=bits: gptq(bits, 1, False) for bits in (2, 3, 4, 8)},
    "gptq-v2-4bit-act-order": lambda: gptq(4, 2, True),
    "awq-gemm": lambda: awq(False),
    "awq-gemv": lambda: awq(True),
    **{f"compressed-{bits}bit": lambda bits=bits: compressed(bits, True, 16) for bits in (3, 4, 8)},
    "compressed-4bit-asymmetric": lambda: compressed(4, False, 16),
    "compressed-8bit-by-row": lambda: compressed(8, True, None),
    "nvfp4": nvfp4,
    "plain-fp8-tensor": lambda: plain("float", strategy="tensor"),
    "plain-fp8-channel": lambda: plain("float", strategy="channel"),
    "plain-fp8-group": lambda: plain("float", strategy="group", group_size=16),
    "plain-fp8-block": lambda: plain("float", strategy="block", block_structure=[16, 32]),
    "plain-mxfp8": lambda: plain("float", strategy="group", group_size=32, scale_dtype=torch.uint8),
    "plain-int8-channel": lambda: plain("int", strategy="channel"),
    "plain-int8-group-asymmetric": lambda: plain("int", strategy="group", group_size=16, symmetric=False),
    "fp8-tiles": lambda: finegrained("float"),
    "fp8-tiles-of-powers": lambda: finegrained("ue8m0"),
    **{f"hqq-{bits}bit": lambda bits=bits: hqq(bits, 1) for bits in (1, 2, 3, 4, 8)},
    "hqq-4bit-by-output": lambda: hqq(4, 0),
    "hqq-3bit-by-output": lambda: hqq(3, 0),
    **{f"torchao-{kind}": lambda kind=kind: torchao(kind) for kind in ("int8", "float8", "int4")},
}


def main(folder: Path, names: list[str]) -> None:
    for name, make in ((name, MADE[name]) for name in names or MADE):
        found = {key if key == "expected" else f"{L}.{key}": value.contiguous() for key, value in make().items()}
        save_file(found, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

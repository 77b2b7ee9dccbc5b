"""Quantized checkpoints read without their libraries, to the bit of what the libraries give back.

The files under `packed/` were written by gptqmodel and compressed-tensors, once (`packed/make.py`); bitsandbytes writes
here. EXL2 cannot be made without a GPU: its file is put together below from the format's own description.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import workbench as wb
from workbench.exceptions import WorkbenchError

WRITTEN = sorted((Path(__file__).parent / "packed").glob("*.safetensors"))
MODULE = "model.layers.0.mlp.up_proj"
NAME = f"{MODULE}.weight"
CONFIGS = {
    "gptq-v1": {"quant_method": "gptq", "checkpoint_format": "gptq"},
    "gptq-v2": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
    "awq-gemm": {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"},
    "awq-gemv": {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"},
    "compressed": {"quant_method": "compressed-tensors"},
    "nvfp4": {"quant_method": "compressed-tensors"},
    "plain": {"quant_method": "compressed-tensors"},
    "fp8-tiles": {"quant_method": "fp8", "weight_block_size": [16, 32]},
    "hqq": {"quant_method": "hqq"},
    "torchao": {"quant_method": "torchao"},
}


def opened(folder: Path, tensors: dict, settings: dict | None):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama"} | ({"quantization_config": settings} if settings is not None else {})
    (folder / "config.json").write_text(json.dumps(config))
    return wb.load(folder)


def settings_for(path: Path) -> dict:
    found = next(dict(settings) for start, settings in CONFIGS.items() if path.stem.startswith(start))
    if path.stem.startswith("compressed"):
        bits = int(path.stem.split("-")[1].removesuffix("bit"))
        found["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits}}}
    return found


def tensors_of(path: Path) -> tuple[dict, np.ndarray]:
    from safetensors.torch import load_file as load_torch  # numpy has no float8

    found = load_torch(path)
    return found, found.pop("expected").numpy()


def opened_torch(folder: Path, tensors: dict, settings: dict | None):
    from safetensors.torch import save_file as save_torch

    model = opened(folder, {"nothing": np.zeros(1, np.float32)}, settings)
    save_torch(tensors, folder / "model.safetensors")
    return wb.load(model.path)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_what_a_library_wrote_is_read_as_it_reads_it(path, tmp_path):
    tensors, expected = tensors_of(path)
    model = opened_torch(tmp_path, tensors, settings_for(path))
    assert list(model.tensors) == [NAME]
    info = model.tensors[NAME]
    assert info.shape == expected.shape
    assert sum(part.nbytes for part in model.held_in(NAME)) == sum(tensor.nbytes for tensor in tensors.values())
    np.testing.assert_allclose(model.read(NAME), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(model.read(NAME, slice(5, 19)), model.read(NAME)[5:19])
    assert [matrix.name for matrix in model.matrices] == [NAME]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_of_bitsandbytes_are_read_as_it_decodes_them(kind, nested, tmp_path):
    import torch
    from bitsandbytes import functional

    weights = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    codes, state = functional.quantize_4bit(weights, blocksize=64, quant_type=kind, compress_statistics=nested)
    parts = {f"{NAME}.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    model = opened_torch(tmp_path, {NAME: codes, **parts}, {"quant_method": "bitsandbytes"})
    expected = functional.dequantize_4bit(codes, state).numpy()
    np.testing.assert_array_equal(model.read(NAME), expected)
    np.testing.assert_array_equal(model.read(NAME, slice(7, 12)), expected[7:12])
    assert model.tensors[NAME].encoding.startswith(kind.upper())


def test_llm_int8_of_bitsandbytes_is_read_as_it_decodes_it(tmp_path):
    import torch
    from bitsandbytes import functional

    weights = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).half()
    codes, scales, _ = functional.int8_vectorwise_quant(weights)
    parts = {f"{MODULE}.SCB": scales, f"{MODULE}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    model = opened_torch(tmp_path, {NAME: codes, **parts}, {"quant_method": "bitsandbytes"})
    expected = functional.int8_vectorwise_dequant(codes, scales).numpy()
    np.testing.assert_allclose(model.read(NAME), expected, rtol=1e-6)


def test_experts_in_mxfp4_are_read_as_transformers_reads_them(tmp_path):
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (3, 8, 2, 16)).astype(np.uint8)
    scales = random.integers(120, 134, (3, 8, 2)).astype(np.uint8)
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    model = opened(tmp_path, {f"{stack}_blocks": blocks, f"{stack}_scales": scales}, {"quant_method": "mxfp4"})
    expected = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
    np.testing.assert_array_equal(model.read(stack), expected.numpy())
    np.testing.assert_array_equal(model.read(stack, slice(1, 2)), expected.numpy()[1:2])


# --- EXL2: packed here, code by code, after ExLlamaV2's own description -----------------------------

GROUPS = ((5, 32), (4, 64), (3, 32))  # bits, inputs


def exl2(outputs: int = 32) -> tuple[dict, np.ndarray]:
    """A matrix's tensors and the weights [out, in] that they stand for; bit by bit, unlike the reader."""
    random = np.random.default_rng(0)
    inputs = sum(count for _, count in GROUPS)
    order = random.permutation(inputs)  # sorted row -> input
    rows, weights, starts, at = [], np.zeros((outputs, inputs)), [], 0
    scales = random.integers(0, 16, (len(GROUPS), outputs))
    most = random.uniform(0.5, 2, len(GROUPS)).astype(np.float16)
    for number, (bits, count) in enumerate(GROUPS):
        starts += [bits, len(rows)]
        codes = random.integers(0, 1 << bits, (count, outputs))
        words = np.zeros((count * bits // 32, outputs), np.uint64)
        for place in range(count * bits):
            bit = codes[place // bits] >> (place % bits) & 1
            words[place // 32] |= bit.astype(np.uint64) << np.uint64(place % 32)
        rows += list(words.astype(np.uint32).view(np.int32))
        step = (scales[number] + 1.0) ** 2 * float(most[number]) / 256
        weights[:, order[at : at + count]] = ((codes - (1 << (bits - 1))) * step).T
        at += count
    packed = [
        [int(sum(int(group[8 * w + k]) << (4 * k) for k in range(8))) for w in range(outputs // 8)] for group in scales
    ]
    parts = {
        "q_weight": np.stack(rows),
        "q_scale": np.array(packed, np.uint32).view(np.int32),
        "q_scale_max": most,
        "q_groups": np.array(starts, np.int16),
        "q_invperm": np.argsort(order).astype(np.int32),
    }
    return {f"{MODULE}.{name}": array for name, array in parts.items()}, weights


def test_exl2_is_read_as_its_description_says(tmp_path):
    tensors, expected = exl2()
    model = opened(tmp_path, tensors, {"quant_method": "exl2"})
    np.testing.assert_allclose(model.read(NAME), expected, rtol=1e-6)
    np.testing.assert_array_equal(model.read(NAME, slice(3, 9)), model.read(NAME)[3:9])


# --- what is damaged or contradicts itself ----------------------------------------------------------

GPTQ = {"quant_method": "gptq", "bits": 4}


def gptq() -> dict:
    return load_file(WRITTEN[0].with_name("gptq-v1-4bit.safetensors"))


def damaged(**changes) -> dict:
    found = gptq()
    found.pop("expected")
    for part, change in changes.items():
        found[f"{MODULE}.{part}"] = change(found[f"{MODULE}.{part}"])
    return found


BAD_HEADERS = {
    "no config": (damaged(), None, "no quantization_config"),
    "another method": (damaged(), {"quant_method": "sorcery"}, "sorcery"),
    "other bits": (damaged(), GPTQ | {"bits": 8}, "config.json says 8"),
    "scales of another shape": (damaged(scales=lambda a: a[:, :-1].copy()), GPTQ, "scales"),
    "codes of another shape": (damaged(qweight=lambda a: a[:-1].copy()), GPTQ, "bits"),
    "an unknown AWQ layout": (
        {k: v for k, v in damaged().items() if "g_idx" not in k},
        {"quant_method": "awq", "version": "marlin"},
        "marlin",
    ),
    "a part is missing": ({k: v for k, v in damaged().items() if "scales" not in k}, GPTQ, "scales is missing"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_parts_that_do_not_fit_are_refused_when_the_folder_is_opened(case, tmp_path):
    tensors, settings, said = BAD_HEADERS[case]
    with pytest.raises(WorkbenchError, match=said):
        opened(tmp_path, tensors, settings)


def with_value(place, value):
    def change(array):
        array = array.copy()
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("part", "value"), [("g_idx", 99), ("g_idx", -1), ("scales", np.nan), ("scales", np.inf)], ids=str
)
def test_values_that_mean_nothing_are_named_when_they_are_read(part, value, tmp_path):
    model = opened(tmp_path, damaged(**{part: with_value(0, value)}), GPTQ)
    with pytest.raises(WorkbenchError, match=part):
        model.read(NAME)


def test_exl2_groups_past_the_end_are_refused(tmp_path):
    tensors, _ = exl2()
    tensors[f"{MODULE}.q_groups"] = with_value(3, 999)(tensors[f"{MODULE}.q_groups"])
    with pytest.raises(WorkbenchError, match="q_groups"):
        opened(tmp_path, tensors, {}).read(NAME)
    tensors, _ = exl2()
    tensors[f"{MODULE}.q_invperm"] = with_value(0, 1)(tensors[f"{MODULE}.q_invperm"])
    with pytest.raises(WorkbenchError, match="permutation"):
        opened(tmp_path / "second", tensors, {}).read(NAME)


def test_another_value_is_another_model(tmp_path):
    tensors = damaged()
    first = opened(tmp_path / "first", tensors, GPTQ).digest(NAME)
    tensors[f"{MODULE}.scales"] = with_value((0, 0), 1)(tensors[f"{MODULE}.scales"])
    assert opened(tmp_path / "second", tensors, GPTQ).digest(NAME) != first

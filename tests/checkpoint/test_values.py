"""Values: the same as the libraries give that own the formats, for real files written by them, rows by rows."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from safetensors import safe_open
from safetensors.torch import save_file

import workbench as wb
from tests import tiny
from workbench.checkpoint import Checkpoint

Weights = dict[str, np.ndarray]
UP = "model.layers.0.mlp.up_proj.weight"
TYPES = [
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *(
        "IQ4_NL",
        "IQ4_XS",
        "IQ3_S",
        "IQ3_XXS",
        "IQ2_S",
        "IQ2_XS",
        "IQ2_XXS",
        "IQ1_S",
        "TQ1_0",
        "TQ2_0",
        "MXFP4",
        "NVFP4",
    ),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_safetensors_values_are_those_of_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = torch.randn(10, 7, generator=torch.manual_seed(0)).to(dtype)
    save_file({"a.weight": stored, "scalar": stored[0, 0].clone()}, tmp_path / "model.safetensors")
    model = wb.load(tmp_path)
    assert np.array_equal(model.read("a.weight"), stored.float().numpy())
    assert np.array_equal(model.read("a.weight", slice(3, 5)), stored[3:5].float().numpy())
    assert model.read("scalar") == stored[0, 0].float().numpy()


def test_a_real_folder_gives_what_safetensors_reads(tmp_path: Path) -> None:
    made = tiny.folder(tmp_path / "m", tiny.weights(512, tied=False), dtype="F16", shards=2)
    model = wb.load(made)
    for info in model.tensors.values():
        with safe_open(info.file, "np") as file:
            assert np.array_equal(model.read(info.name), file.get_tensor(info.name).astype(np.float32))


@pytest.mark.parametrize("type_name", TYPES)
def test_gguf_values_are_those_of_the_gguf_library(tmp_path: Path, type_name: str) -> None:
    everything = tiny.weights(256, layers=1, intermediate=64)
    few = {name: everything[name] for name in ("model.embed_tokens.weight", UP, "model.norm.weight")}
    file = tiny.gguf(tmp_path / "m.gguf", few, type_name)
    model, reader = wb.load(file), gguf.GGUFReader(file)
    assert set(model.tensors) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        expected = quants.dequantize(tensor.data, tensor.tensor_type)
        info = model.tensors[tensor.name]
        assert (info.encoding, info.nbytes) == (tensor.tensor_type.name, tensor.n_bytes)
        assert np.array_equal(model.read(tensor.name), expected)
        assert np.array_equal(model.read(tensor.name, slice(5, 9)), expected[5:9])


def test_a_stack_of_experts_is_read_expert_by_expert(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).standard_normal((4, 8, 256)).astype(np.float32)
    stored = quants.quantize(stack, gguf.GGMLQuantizationType.Q4_0)
    writer = gguf.GGUFWriter(tmp_path / "moe.gguf", "qwen3moe")
    writer.add_tensor("blk.0.ffn_up_exps.weight", stored, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = wb.load(tmp_path / "moe.gguf")
    (info,) = model.matrices
    assert (info.shape, info.layer, info.role) == ((4, 8, 256), 0, "up_proj")
    expected = quants.dequantize(stored, gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(model.read(info.name), expected)
    assert np.array_equal(model.read(info.name, slice(2, 3)), expected[2:3])


@pytest.mark.parametrize(
    "rows",
    [slice(None), slice(0, 0), slice(3, 7), slice(250, 999), slice(-2, None), slice(9, 3)],
    ids=["all", "none", "some", "past the end", "from the end", "backwards"],
)
@pytest.mark.parametrize("kind", ["folder", "gguf_file"])
def test_rows_are_the_slice_of_the_whole(request: pytest.FixtureRequest, kind: str, rows: slice) -> None:
    model = wb.load(request.getfixturevalue(kind))
    name = model.matrices[1].name
    part, whole = model.read(name, rows), model.read(name)
    assert np.array_equal(part, whole[rows])
    assert part.flags.writeable


def test_only_the_bytes_of_the_rows_are_read(tmp_path: Path, weights: Weights) -> None:
    file = tiny.gguf(tmp_path / "m.gguf", weights, "Q8_0")
    model = wb.load(file)
    last = max(model.tensors.values(), key=lambda info: info.offset)
    first_rows = model.read(last.name, slice(0, 2))
    os.truncate(file, last.offset + 2 * last.nbytes // last.shape[0])
    assert np.array_equal(model.read(last.name, slice(0, 2)), first_rows)
    with pytest.raises(wb.WorkbenchError, match=r"bytes were expected and .* are there: the file was changed"):
        model.read(last.name)


def test_an_unknown_name_is_answered_with_those_that_come_near(folder: Path) -> None:
    with pytest.raises(wb.WorkbenchError, match=r"no tensor 'down_proj'\nAllowed: model.layers.0.mlp.down_proj.weight"):
        wb.load(folder).read("down_proj")


# --- FP8 ---------------------------------------------------------------------------------------

FP8 = {"F8_E4M3": (torch.float8_e4m3fn, 448.0), "F8_E5M2": (torch.float8_e5m2, 57344.0)}


def fp8_folder(folder: Path, kind: str, blocks: tuple[int, int], suffix: str, shape: tuple[int, ...] = (300, 200)):
    """A matrix in FP8 with a scale for each block, written by torch; and what torch makes of it again."""
    dtype, largest = FP8[kind]
    weights = torch.randn(*shape, generator=torch.manual_seed(1))
    whole = tuple(-(-size // block) for size, block in zip(shape[-2:], blocks, strict=True))
    rows, cols = (torch.arange(size) // block for size, block in zip(shape[-2:], blocks, strict=True))
    scale = torch.rand(*shape[:-2], *whole, generator=torch.manual_seed(2)) / largest * 8
    spread = scale[..., rows, :][..., cols]
    codes = (weights / spread).clamp(-largest, largest).to(dtype)
    stored = scale.reshape(()) if blocks == shape and suffix == "weight_scale" else scale
    save_file({UP: codes, UP.replace("weight", suffix): stored.contiguous()}, folder / "model.safetensors")
    return SimpleNamespace(model=wb.load(folder), expected=(codes.float() * spread).numpy())


@pytest.mark.parametrize("kind", FP8)
@pytest.mark.parametrize("suffix", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize(
    "blocks", [(300, 200), (1, 200), (128, 128)], ids=["per tensor", "per channel", "blocks of 128 x 128"]
)
def test_fp8_weights_come_multiplied_by_their_scale(
    tmp_path: Path, kind: str, suffix: str, blocks: tuple[int, int]
) -> None:
    made = fp8_folder(tmp_path, kind, blocks, suffix)
    assert np.array_equal(made.model.read(UP), made.expected)
    assert np.array_equal(made.model.read(UP, slice(120, 140)), made.expected[120:140])


def test_stacked_fp8_experts_have_a_scale_each(tmp_path: Path) -> None:
    made = fp8_folder(tmp_path, "F8_E4M3", (128, 128), "weight_scale_inv", (3, 256, 130))
    assert np.array_equal(made.model.read(UP), made.expected)
    assert np.array_equal(made.model.read(UP, slice(1, 2)), made.expected[1:2])


def test_fp8_without_a_scale_is_read_as_it_is(tmp_path: Path) -> None:
    codes = torch.randn(4, 4, generator=torch.manual_seed(0)).to(torch.float8_e4m3fn)
    save_file({UP: codes}, tmp_path / "model.safetensors")
    assert np.array_equal(wb.load(tmp_path).read(UP), codes.float().numpy())


def test_a_scale_is_no_parameter_but_counts_as_bytes_and_in_the_digest(tmp_path: Path) -> None:
    model = fp8_folder(tmp_path, "F8_E4M3", (128, 128), "weight_scale_inv").model
    assert list(model.tensors) == [UP]
    assert model.nbytes == 300 * 200 + 4 * 3 * 2
    assert model.params == 300 * 200
    before = model.digest(UP)
    scale = model.extras[UP + "_scale_inv"]
    data = bytearray(scale.file.read_bytes())
    data[scale.offset] ^= 1
    scale.file.write_bytes(data)
    assert wb.load(tmp_path).digest(UP) != before


def test_scales_that_are_powers_of_two_in_a_byte_are_read(tmp_path: Path) -> None:
    codes = torch.randn(4, 4, generator=torch.manual_seed(0)).to(torch.float8_e4m3fn)
    scale = torch.tensor([[0.5], [1.0], [2.0], [8.0]])
    save_file({UP: codes, UP + "_scale": scale.to(torch.float8_e8m0fnu)}, tmp_path / "model.safetensors")
    assert np.array_equal(wb.load(tmp_path).read(UP), (codes.float() * scale).numpy())


@pytest.mark.parametrize("shape", [(300, 200), (0, 640), ()], ids=str)
def test_a_scale_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    codes = torch.zeros(shape).to(torch.float8_e4m3fn)
    save_file({UP: codes, UP + "_scale": torch.ones(1, 7)}, tmp_path / "model.safetensors")
    with pytest.raises(wb.WorkbenchError, match=r"its scale has shape \[1, 7\] for weights of shape \["):
        wb.load(tmp_path).read(UP)


# --- what cannot be read -----------------------------------------------------------------------


def test_a_tensor_of_an_unknown_type_is_marked_and_the_rest_is_read(tmp_path: Path, folder: Path) -> None:
    made = tmp_path / "m"
    made.mkdir()
    (made / "config.json").write_bytes((folder / "config.json").read_bytes())
    raw = (folder / "model.safetensors").read_bytes()
    place = raw.index(UP.encode())
    (made / "model.safetensors").write_bytes(raw[:place] + raw[place:].replace(b"BF16", b"XF16", 1))
    model = wb.load(made)
    assert_only_up_is_unreadable(model, UP, "its data type 'XF16' is unknown")


def test_a_gguf_tensor_of_an_unknown_type_is_marked_and_the_rest_is_read(tmp_path: Path, gguf_file: Path) -> None:
    name = "blk.0.ffn_up.weight"
    raw = bytearray(gguf_file.read_bytes())
    place = raw.index(name.encode()) + len(name) + 4 + 2 * 8
    raw[place : place + 4] = (99).to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(raw)
    model = wb.load(tmp_path / "m.gguf")
    assert model.tensors[name].nbytes == wb.load(gguf_file).tensors[name].nbytes
    assert_only_up_is_unreadable(model, name, "its ggml type 99 is unknown")


def assert_only_up_is_unreadable(model: Checkpoint, name: str, problem: str) -> None:
    assert [info.name for info in model.tensors.values() if info.problem] == [name]
    assert model.tensors[name].problem == problem
    assert not model.tensors[name].is_matrix
    assert f"1 tensors cannot be read, such as {name!r}: {problem}." in model.notes[-1]
    assert f"CANNOT BE READ: {problem}" in repr(model)
    with pytest.raises(wb.WorkbenchError, match=f"{name}.*{problem}"):
        model.read(name)
    assert all(np.isfinite(model.read(info.name)).all() for info in model.tensors.values() if not info.problem)


def test_codes_of_another_quantizer_are_no_weights(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.up_proj.of_no_known_kind": torch.ones(8, 8, dtype=torch.int32)}
    save_file(tensors, tmp_path / "model.safetensors")
    model = wb.load(tmp_path)
    assert model.matrices == []
    with pytest.raises(wb.WorkbenchError, match="stored as I32: codes, not weights"):
        model.read(next(iter(tensors)))


# --- digests -----------------------------------------------------------------------------------


def test_the_digest_is_of_the_stored_bytes(tmp_path: Path, weights: Weights, folder: Path) -> None:
    copied = wb.load(tiny.folder(tmp_path / "copy", weights, shards=2))
    changed = wb.load(tiny.folder(tmp_path / "other", weights | {UP: weights[UP] * 2}))
    model = wb.load(folder)
    assert copied.digest(UP) == model.digest(UP) != changed.digest(UP)
    assert model.digest(UP) == wb.load(folder).digest(UP)


def test_a_remembered_digest_ends_with_the_file(tmp_path: Path, weights: Weights) -> None:
    made = tiny.folder(tmp_path / "m", weights)
    before = wb.load(made).digest(UP)
    tiny.folder(made, weights | {UP: -weights[UP]})
    assert wb.load(made).digest(UP) != before

"""`wb.diff`: what each matrix of a published checkpoint is, and whether what somebody did to it is found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import workbench as wb
from tests import packed, tiny
from workbench.forensics import diff_steps

WEIGHTS = tiny.weights(layers=8)
UP = "model.layers.3.mlp.up_proj"
NORM = "model.layers.3.input_layernorm.weight"
EVIL = "model.layers.2.<img src=x onerror=alert(1)>\x1b[31m.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return wb.load(tiny.folder(tmp_path_factory.mktemp("original") / "original", WEIGHTS))


def made(folder: Path, kind: str = "GPTQ", *, without: str = "\0", **changes: np.ndarray):
    """A quantized folder; `without` the tensors that begin so, and with `changes` (dots as __)."""
    found = {name: array for name, array in packed.tensors(kind, WEIGHTS).items() if not name.startswith(without)}
    found |= {name.replace("__", "."): array for name, array in changes.items()}
    return packed.written(folder, found, tiny.llama_config(WEIGHTS) | {"quantization_config": packed.KINDS[kind][1]})


def told(found, kind: str) -> dict[str, str]:
    return {each.tensor: each.what for each in found.unusual if each.kind == kind}


SCHEMES = {
    "GPTQ": ("GPTQ 4-bit g32", "32", 4),
    "AWQ": ("AWQ 4-bit g32", "32", 4),
    "EXL2": ("EXL2 4.00-bit", "128", 4),
    "compressed": ("INT4 g32", "32", 4),
    "NVFP4": ("NVFP4", "16", 4),
    "ModelOpt": ("NVFP4", "16", 4),
    "HQQ": ("HQQ 4-bit g32", "32", 4),
    "torchao": ("torchao INT8", "row", 8),
    "NF4": ("NF4, scales in 8 bits", "64", 4),
    "LLM.int8": ("LLM.int8", "row", 8),
    "FP8": ("F8_E4M3", "row", 8),
    "FP8 blocks": ("F8_E4M3", "128 x 128", 8),
}


@pytest.mark.parametrize("kind", packed.KINDS)
def test_an_ordinary_checkpoint_is_told_by_scheme_group_bits_bytes_and_error(original, kind, tmp_path):
    found = wb.diff(original, made(tmp_path / "made", kind))
    assert list(found.unusual) == []
    frame = found.frame.set_index("tensor")
    assert list(frame.index) == [info.name for info in original.matrices]
    row = frame.loc[f"{UP}.weight"]
    assert (row.scheme, row.group, row.bits) == SCHEMES[kind]
    model = wb.load(tmp_path / "made")
    before, after = original.read(row.name), model.read(row.name)
    assert row.weight_error == pytest.approx(np.square(before - after).sum() / np.square(before).sum(), rel=1e-4)
    assert row.bytes == sum(part.nbytes for part in model.held_in(row.name))
    assert row.bits_per_weight == pytest.approx(8 * row.bytes / before.size)
    assert (row.original, row.original_bytes) == ("BF16", 2 * before.size)
    embedding = frame.loc["model.embed_tokens.weight"]
    assert (embedding.scheme, embedding.group, embedding.weight_error) == ("BF16", "", 0)
    assert found.frame.bytes.sum() <= model.nbytes
    assert "nothing unusual" in repr(found)
    assert SCHEMES[kind][0] in repr(found)


def test_a_gguf_is_told_too(original, tmp_path):
    types = {tiny.gguf_name(name): "Q4_0" for name, values in WEIGHTS.items() if values.ndim == 2}
    file = tiny.gguf(tmp_path / "some.gguf", WEIGHTS, types | {"blk.6.ffn_down.weight": "F16"})
    found = wb.diff(original, file)
    frame = found.frame.set_index("tensor")
    assert (frame.scheme[f"{UP}.weight"], frame.group[f"{UP}.weight"], frame.bits[f"{UP}.weight"]) == ("Q4_0", "32", 4)
    assert frame.weight_error.max() < 0.02
    assert [(each.tensor, each.kind) for each in found.unusual] == [
        ("model.layers.6.mlp.down_proj.weight", "unquantized")
    ]


def test_a_layer_left_alone_is_found(original, tmp_path):
    plain = WEIGHTS[f"{UP}.weight"].astype(ml_dtypes.bfloat16)
    found = wb.diff(original, made(tmp_path / "made", without=f"{UP}.", **{f"{UP}.weight": plain}))
    assert told(found, "unquantized") == {f"{UP}.weight": "it was left in BF16"}
    assert len(found.unusual) == 1


def test_a_matrix_in_another_scheme_than_its_kind_is_found(original, tmp_path):
    eight = {f"{UP}.{part}": array for part, array in packed.gptq(WEIGHTS[f"{UP}.weight"], bits=8).items()}
    settings = packed.KINDS["GPTQ"][1] | {"dynamic": {r"+:.*\.3\.mlp\.up_proj": {"bits": 8}}}
    folder = made(tmp_path / "made", without=f"{UP}.", **eight)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    found = wb.diff(original, folder)
    assert told(found, "scheme") == {f"{UP}.weight": "it is GPTQ 8-bit g32, and 7 of 8 up_proj are GPTQ 4-bit g32"}


def test_groups_of_zeros_are_found_unless_the_original_has_them(original, tmp_path):
    weights = WEIGHTS[f"{UP}.weight"].copy()
    weights[5, 64:128] = 0
    parts = {f"{UP}.{part}": array for part, array in packed.gptq(weights).items()}
    folder = made(tmp_path / "made", **parts)
    found = wb.diff(original, folder)
    assert told(found, "zeros") == {f"{UP}.weight": "2 of 4,096 groups are all zeros, unlike the original's"}
    zeroed = wb.load(tiny.folder(tmp_path / "zeroed", WEIGHTS | {f"{UP}.weight": weights}))
    assert not told(wb.diff(zeroed, folder), "zeros")


@pytest.mark.parametrize(
    ("value", "what"), [(1e-7, "denormal"), (65504, "largest number"), (-0.01, "below zero")], ids=str
)
def test_scales_at_the_ends_of_their_type_are_found(original, value, what, tmp_path):
    parts = packed.compressed(WEIGHTS[f"{UP}.weight"])
    parts["weight_scale"] = parts["weight_scale"].astype(np.float16)
    parts["weight_scale"][0, :3] = value
    found = wb.diff(original, made(tmp_path / "made", "compressed", **{f"{UP}.{k}": v for k, v in parts.items()}))
    said = told(found, "scales")[f"{UP}.weight"]
    assert said.startswith("3 of 4,096 scales are")
    assert what in said


def test_tensors_that_are_missing_strange_or_changed_are_found(original, tmp_path):
    changes = {
        "model.layers.3.mlp.secret_proj.weight": np.ones((4, 4), np.float32),
        "lm_head.weight": WEIGHTS["model.embed_tokens.weight"],
        NORM: 2 * WEIGHTS[NORM],
        "model.norm.weight": WEIGHTS["model.norm.weight"].astype(np.float16),
    }
    found = wb.diff(original, made(tmp_path / "made", without="model.layers.7.mlp.gate", **changes))
    assert set(told(found, "missing")) == {"model.layers.7.mlp.gate_proj.weight"}
    strange = told(found, "stranger")
    assert set(strange) == {"model.layers.3.mlp.secret_proj.weight", "lm_head.weight"}
    assert "a head of its own" in strange["lm_head.weight"]
    assert set(told(found, "changed")) == {NORM}


def test_scales_that_were_moved_as_awq_moves_them_are_no_loss(original, tmp_path):
    """Norms divided and matrices multiplied, rows of up and columns of down: the same model, and no larger errors."""
    random, moved = np.random.default_rng(3), dict(WEIGHTS)
    for layer in range(8):
        at = f"model.layers.{layer}"
        for norm, fed in (("input", ["q", "k", "v"]), ("post_attention", ["gate", "up"])):
            scale = np.exp(random.normal(0, 0.4, 256)).astype(np.float32)
            moved[f"{at}.{norm}_layernorm.weight"] = WEIGHTS[f"{at}.{norm}_layernorm.weight"] / scale
            for role in fed:
                name = f"{at}.self_attn.{role}_proj.weight" if norm == "input" else f"{at}.mlp.{role}_proj.weight"
                moved[name] = WEIGHTS[name] * scale
        between = np.exp(random.normal(0, 0.4, 512)).astype(np.float32)
        moved[f"{at}.mlp.up_proj.weight"] = moved[f"{at}.mlp.up_proj.weight"] / between[:, None]
        moved[f"{at}.mlp.down_proj.weight"] = WEIGHTS[f"{at}.mlp.down_proj.weight"] * between
    config = tiny.llama_config(WEIGHTS) | {"quantization_config": packed.KINDS["AWQ"][1]}
    folder = packed.written(tmp_path / "made", packed.tensors("AWQ", moved), config)
    found = wb.diff(original, folder)
    plain = wb.diff(original, made(tmp_path / "plain", "AWQ")).frame.set_index("tensor").weight_error
    errors = found.frame.set_index("tensor").weight_error
    assert errors.max() < 4 * plain.max()  # the scales of this test are chosen without regard to the weights
    assert {each.kind for each in found.unusual} == {"moved"}
    assert set(told(found, "moved")) == {
        f"model.layers.*.{norm}_layernorm.weight" for norm in ("input", "post_attention")
    }
    assert wb.compare(original, folder, "A lamp in a window, a dog in the lane. " * 10, context=64).kl.value < 0.3


def test_weights_of_another_shape_or_of_something_else_are_found(original, tmp_path):
    other = np.random.default_rng(9).standard_normal((512, 256)).astype(np.float32) / 16
    wide = {f"model.layers.4.mlp.up_proj.{k}": v for k, v in packed.gptq(np.ones((64, 256), np.float32)).items()}
    parts = {f"{UP}.{part}": array for part, array in packed.gptq(other).items()}
    found = wb.diff(original, made(tmp_path / "made", **parts, **wide))
    assert "it is [64, 256] there" in told(found, "shape")["model.layers.4.mlp.up_proj.weight"]
    assert (
        "little in common" in told(found, "error")[f"{UP}.weight"]
        or "times the median" in told(found, "error")[f"{UP}.weight"]
    )
    assert not told(found, "missing")
    assert not told(found, "stranger")


def test_a_matrix_that_cannot_be_decoded_is_a_finding_among_measured_ones(original, tmp_path):
    parts = packed.gptq(WEIGHTS[f"{UP}.weight"])
    parts["scales"][0, 0] = np.nan
    found = wb.diff(original, made(tmp_path / "made", **{f"{UP}.{part}": array for part, array in parts.items()}))
    assert re.search(r"up_proj\.scales.*not finite", told(found, "broken")[f"{UP}.weight"])
    errors = found.frame.set_index("tensor").weight_error
    assert errors.isna().sum() == 1
    assert np.isnan(errors[f"{UP}.weight"])
    assert found.heatmap().data
    assert "cannot be decoded" in found.report(tmp_path / "page.html").read_text()


def test_everything_that_a_file_says_is_escaped(original, tmp_path):
    folder = made(tmp_path / "<b>made", **{EVIL: np.ones((4, 4), np.float32)})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["sym"] = "<script>alert(2)</script>"
    (folder / "config.json").write_text(json.dumps(config))
    found = wb.diff(original, folder)
    page = found.report(tmp_path / "out" / "page.html").read_text()
    for text in (page.split("plotly.js v")[0], found._repr_html_()):
        assert "<img" not in text
        assert "<script>alert" not in text
    for text in (page, found._repr_html_(), repr(found)):
        assert "\x1b" not in text
        assert "<b>made" not in text.replace(repr(found), "")
    assert "<img" not in str(found.heatmap().to_dict())
    assert "http://" not in page.split("<h2>Pictures")[0]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["page.html"]


def test_the_page_has_what_the_table_has(original, tmp_path):
    found = wb.diff(original, made(tmp_path / "made"), "A lamp in a window, a dog in the lane. " * 20, tokens=128)
    assert found.frame.output_error.notna().all()
    page = found.report(tmp_path / "page.html").read_text()
    assert str(tmp_path) not in page
    assert page.count("GPTQ 4-bit g32") > len(original.matrices) - 2
    assert all(info.name in page for info in original.matrices)
    assert "output error" in page
    assert found.errors.matrix(f"{UP}.weight", "made").rows == 512
    assert found.summary.matrices.sum() == len(found.frame)


def test_other_models_are_refused_and_a_cancelled_diff_ends(original, tmp_path):
    with pytest.raises(wb.WorkbenchError, match="nothing"):
        wb.diff(original, tmp_path / "nothing")
    steps = diff_steps(original, made(tmp_path / "made"))
    next(steps)
    steps.close()

"""`wb.quantize`: folders that read back as their formats say, that transformers loads, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import workbench as wb
from tests import packed, tiny
from workbench import files, fit, formats
from workbench.checkpoint import Checkpoint
from workbench.engines import build
from workbench.planning import plan_for
from workbench.quantizing import folder, quantize_steps

ROUNDED = (
    "FP8",
    "FP8-block",
    "INT8-row",
    "INT8",
    "INT8-g128",
    "INT4",
    "INT4-g32",
    "INT4-g128",
    "NF4",
    "FP4",
    "LLM.int8",
)
UP = "model.layers.0.mlp.up_proj.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return wb.load(tiny.folder(tmp_path / "source", tiny.weights()))


@pytest.mark.parametrize("scheme", ROUNDED)
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_every_matrix_reads_back_as_its_format_says(tmp_path: Path, kind: str, scheme: str) -> None:
    weights = {name: values.astype(np.float16).astype(np.float32) for name, values in tiny.weights().items()}
    if kind == "folder":
        model = wb.load(tiny.folder(tmp_path / "source", weights, dtype="F16"))
    else:
        model = wb.load(tiny.gguf(tmp_path / "source.gguf", weights, "F16"))
    made = wb.quantize(model, scheme, to=tmp_path / "made")
    opened = wb.load(made.path)
    exact = formats.get(scheme).family != "bitsandbytes"  # that library multiplies in another order
    assert set(opened.tensors) == set(weights)
    assert opened.nbytes == made.nbytes
    for name, values in weights.items():
        found = opened.read(name)
        if ".layers." not in name or values.ndim == 1:
            assert np.array_equal(found, values), name
            continue
        expected = formats.get(scheme).roundtrip(values)
        assert np.array_equal(found, expected) if exact else np.allclose(found, expected, rtol=1e-6, atol=0), name


def test_what_users_call_the_formats_is_known(source: Checkpoint, tmp_path: Path) -> None:
    for number, (said, format) in enumerate({"W8A8": "INT8-row", "w4a16": "INT4-g128", "nf4": "NF4"}.items()):
        made = wb.quantize(source, said, to=tmp_path / str(number))
        assert made.matrices == {format: 14, "as they were": 1}


@pytest.mark.parametrize("scheme", ["NF4", "FP4", "LLM.int8"])
def test_transformers_loads_what_bitsandbytes_stores(source: Checkpoint, tmp_path: Path, scheme: str) -> None:
    made = wb.quantize(source, scheme, to=tmp_path / "made")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    kind = type(loaded.model.layers[0].mlp.up_proj).__name__
    assert kind == ("Linear8bitLt" if scheme == "LLM.int8" else "Linear4bit")
    ids = torch.arange(10, 60)[None]
    with torch.no_grad():
        found = loaded(ids).logits.float()
        expected = build.model_of(wb.load(made.path), dtype="float32", device="cpu")(ids).logits
    spread = float(expected.std())
    limit = 0.1 if scheme == "LLM.int8" else 0.02  # its activations have 8 bits; the others' products bfloat16
    assert float((found - expected).abs().mean()) < limit * spread
    assert len(transformers.AutoTokenizer.from_pretrained(made.path)("the hat")["input_ids"]) > 0


def test_a_packed_folder_is_quantized_by_its_decoded_weights(tmp_path: Path) -> None:
    model = wb.load(packed.folder(tmp_path / "source", "GPTQ", tiny.weights()))
    opened = wb.load(wb.quantize(model, "INT8", to=tmp_path / "made").path)
    assert opened.tensors[UP].encoding == "INT8 g64"
    assert np.array_equal(opened.read(UP), formats.get("INT8").roundtrip(model.read(UP)))
    assert "gptq" not in (tmp_path / "made" / "config.json").read_text().lower()


def test_a_tied_head_is_left_alone_and_so_is_one_of_its_own(tmp_path: Path) -> None:
    for tied in (True, False):
        model = wb.load(tiny.folder(tmp_path / f"source-{tied}", tiny.weights(tied=tied)))
        for scheme in ("FP8", "NF4"):
            made = wb.quantize(model, scheme, to=tmp_path / f"{scheme}-{tied}")
            said = json.loads((made.path / "config.json").read_text())["quantization_config"]
            assert said["ignore" if scheme == "FP8" else "llm_int8_skip_modules"] == ["lm_head"]


def test_a_split_source_and_a_split_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "SHARD", 300_000)
    weights = tiny.weights()
    made = wb.quantize(tiny.folder(tmp_path / "source", weights, shards=3), "INT4", to=tmp_path / "made")
    index = json.loads((made.path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == made.nbytes
    assert np.array_equal(wb.load(made.path).read(UP), formats.get("INT4").roundtrip(weights[UP]))


def test_the_source_is_untouched_and_its_small_files_come_along_but_no_code(tmp_path: Path) -> None:
    config = tiny.llama_config(tiny.weights()) | {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    path = tiny.folder(tmp_path / "source", tiny.weights(), config=config)
    (path / "generation_config.json").write_text('{"temperature": 0.6}')
    (path / "modeling_evil.py").write_text("raise SystemExit('executed')")
    (path / ("n" * 250)).write_text("")
    before = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}
    made = wb.quantize(path, "INT8", to=tmp_path / "made")
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()} == before
    names = {file.name for file in made.path.iterdir()}
    small = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == small | {"model.safetensors"}
    assert "auto_map" not in (made.path / "config.json").read_text()


# --- plans and overrides ----------------------------------------------------------------------


def test_overrides_become_groups_of_compressed_tensors(source: Checkpoint, tmp_path: Path) -> None:
    wanted = {UP: "INT8", GATE: "INT8", DOWN: "BF16"}
    made = wb.quantize(source, "INT4", to=tmp_path / "made", overrides=wanted)
    assert made.matrices == {"INT4": 11, "INT8": 2, "as they were": 2}
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert {group["weights"]["num_bits"]: len(group["targets"]) for group in said["config_groups"].values()} == {
        4: 11,
        8: 2,
    }
    pair = [GATE.removesuffix(".weight"), UP.removesuffix(".weight")]  # by name: in vLLM "Linear" would come before
    assert pair in [group["targets"] for group in said["config_groups"].values()]
    assert said["ignore"] == ["lm_head", DOWN.removesuffix(".weight")]
    opened = wb.load(made.path)
    assert np.array_equal(opened.read(UP), formats.get("INT8").roundtrip(source.read(UP)))
    assert np.array_equal(opened.read(DOWN), source.read(DOWN))


def test_a_plan_says_everything(source: Checkpoint, tmp_path: Path) -> None:
    layer = {info.name: "FP8" for info in source.matrices if info.layer == 0}
    rest = {info.name: "INT4" for info in source.matrices if info.layer == 1}
    made = wb.quantize(plan_for(source, layer | rest), to=tmp_path / "made")
    assert made.matrices == {"FP8": 7, "INT4": 7, "as they were": 1}
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert said["format"] == "mixed-precision"
    with pytest.raises(wb.WorkbenchError, match="says its formats already"):
        wb.quantize(plan_for(source, layer), "FP8", to=tmp_path / "other")


def test_bitsandbytes_skips_what_a_plan_leaves(source: Checkpoint, tmp_path: Path) -> None:
    made = wb.quantize(source, "NF4", to=tmp_path / "made", overrides={DOWN: "BF16"})
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert said["llm_int8_skip_modules"] == ["lm_head", DOWN.removesuffix(".weight")]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    kinds = [type(layer.mlp.down_proj).__name__ for layer in loaded.model.layers]
    assert kinds == ["Linear", "Linear4bit"]


def test_fused_layers_are_skipped_by_vllms_name_too_and_never_in_part(source: Checkpoint, tmp_path: Path) -> None:
    made = wb.quantize(source, "NF4", to=tmp_path / "made", overrides={UP: "BF16", GATE: "BF16"})
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert "model.layers.0.mlp.gate_up_proj" in said
    with pytest.raises(wb.WorkbenchError, match="as it is"):
        wb.quantize(source, "NF4", to=tmp_path / "other", overrides={UP: "BF16"})


@pytest.mark.parametrize(
    ("scheme", "overrides", "message"),
    [
        ("INT4", {UP: "INT8"}, r"layers\.0\.mlp\..*: vLLM multiplies by 2 matrices at once.*INT8"),
        ("INT4", {DOWN: "NF4"}, "mixes formats of bitsandbytes and compressed-tensors"),
        ("NF4", {DOWN: "FP4"}, "mixes FP4 and NF4"),
        ("INT4", {DOWN: "Q4_K"}, "no Q4_K.*wb.export"),
        ("FP8", {"model.embed_tokens.weight": "FP8"}, "no program runs FP8 there"),
        ("FP8", {"nowhere.weight": "FP8"}, "nowhere.weight"),
    ],
)
def test_what_a_folder_cannot_express_is_refused_with_the_reason(
    source: Checkpoint, tmp_path: Path, scheme: str, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(wb.WorkbenchError, match=f"(?s){message}"):
        wb.quantize(source, scheme, to=tmp_path / "made", overrides=overrides)
    assert not (tmp_path / "made").exists()


# --- refusals, and nothing left behind --------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("AutoGPTQ", r'no longer kept.*wb.quantize\(model, "GPTQ-4bit-g128", text'),
        ("auto-awq", r'no longer kept.*wb.quantize\(model, "AWQ-4bit-g128", text'),
        ("GPTQ-5bit", "not made in 5 bits"),
        ("AWQ-8bit-g128", "not made in 8 bits"),
        ("Q4_K_M", "no checkpoint for GPUs is made in it"),
        ("Q4_K", "wb.export writes GGUF"),
        ("../../etc", "Allowed: .*GPTQ-4bit-g128"),
        (None, "none was named"),
    ],
)
def test_a_name_that_is_not_made_leads_to_one_that_is(
    source: Checkpoint, tmp_path: Path, scheme: str | None, message: str
) -> None:
    with pytest.raises(wb.WorkbenchError, match=f"(?s){message}"):
        wb.quantize(source, scheme, to=tmp_path / "made")


def test_groups_that_do_not_divide_name_those_that_do(tmp_path: Path) -> None:
    model = wb.load(tiny.folder(tmp_path / "source", tiny.weights(hidden=192)))
    with pytest.raises(wb.WorkbenchError, match=r"(?s)192 weights, which groups of 128 do not divide.*32 or 64"):
        wb.quantize(model, "INT4-g128", to=tmp_path / "made")


def test_tiles_that_do_not_divide_lead_to_scales_by_row(tmp_path: Path) -> None:
    model = wb.load(tiny.folder(tmp_path / "source", tiny.weights(hidden=192)))
    with pytest.raises(wb.WorkbenchError, match=r"(?s)192 by 192, which tiles of 128 by 128 do not divide.*FP8"):
        wb.quantize(model, "FP8-block", to=tmp_path / "made")


def test_a_folder_that_is_there_is_never_written_to(source: Checkpoint, tmp_path: Path) -> None:
    for place in (source.path, source.path / "config.json", tmp_path):
        with pytest.raises(wb.WorkbenchError, match="it is there already"):
            wb.quantize(source, "FP8", to=place)
    (tmp_path / "empty").mkdir()
    assert wb.quantize(source, "FP8", to=tmp_path / "empty").path == tmp_path / "empty"


def test_stopping_leaves_nothing(source: Checkpoint, tmp_path: Path) -> None:
    steps = quantize_steps(source, "INT4", to=tmp_path / "made")
    for _ in range(5):
        next(steps)
    steps.close()
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_disk_or_a_memory_that_is_too_small_is_told_before_anything_is_written(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(wb.WorkbenchError, match="free some space"):
        wb.quantize(source, "FP8", to=tmp_path / "made")
    monkeypatch.undo()
    monkeypatch.setattr(folder, "HELD", 1 << 50)
    with pytest.raises(fit.DoesNotFit, match="anyway=True"):
        wb.quantize(source, "FP8", to=tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert wb.quantize(source, "FP8", to=tmp_path / "made", anyway=True).path.is_dir()


def test_bytes_that_the_disk_changed_are_found(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(stored: object, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"weight": parts["codes"] & 0xFE, "weight_scale": parts["scale"]}

    monkeypatch.setattr("workbench.quantizing.parts.Float8.pieces", spoiled)
    with pytest.raises(wb.WorkbenchError, match="reads back differently"):
        wb.quantize(source, "FP8", to=tmp_path / "made")
    assert not (tmp_path / "made").exists()

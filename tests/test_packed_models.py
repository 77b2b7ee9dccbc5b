"""Every call on folders that are packed for GPUs: by decoded weights, and with no library of their own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import workbench as wb
from tests import packed, tiny
from tests.engines import models
from workbench import formats
from workbench.checkpoint import Checkpoint
from workbench.formats import bitsandbytes
from workbench.progress import drain
from workbench.writing import decoded

TEXT = "A lamp in a window, a dog in the lane, and the long blue hour before the first of the snow. " * 4
MATRIX = "model.layers.1.mlp.down_proj.weight"
WEIGHTS = tiny.weights()
THEIRS = ("gptqmodel", "auto_gptq", "awq", "exllamav2", "compressed_tensors", "optimum")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Checkpoint:
    return wb.load(tiny.folder(tmp_path_factory.mktemp("original") / "original", WEIGHTS))


@pytest.fixture(scope="module", params=packed.KINDS)
def model(request, tmp_path_factory) -> Checkpoint:
    kind = request.param
    return wb.load(packed.folder(tmp_path_factory.mktemp("packed") / kind.replace(" ", "-"), kind, WEIGHTS))


@pytest.fixture
def no_library(monkeypatch):
    """As if no library of the formats were installed; bitsandbytes, which transformers imports, must not be called."""
    for name in THEIRS:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(bitsandbytes, "library", lambda: pytest.fail("its library was asked for"))


def lost(original: Checkpoint, model: Checkpoint, name: str) -> float:
    before, after = original.read(name), model.read(name)
    return float(np.square(before - after).sum() / np.square(before).sum())


def test_errors_against_the_original_are_those_of_the_stored_weights(original, model, no_library):
    table = wb.errors(original, [model, "Q4_0"], TEXT, tokens=64)
    rows = table.frame[table.frame.format == model.name].set_index("tensor")
    assert list(rows.index) == [info.name for info in original.matrices]
    assert rows.weight_error[MATRIX] == pytest.approx(lost(original, model, MATRIX), rel=1e-4)
    assert rows.output_error[MATRIX] > 0
    assert rows.weight_error["model.embed_tokens.weight"] == 0
    assert rows.bytes[MATRIX] == sum(part.nbytes for part in model.held_in(MATRIX))
    assert [trace.visible for trace in table.heatmap().data] == [True, True, False, False]
    assert table.heatmap(format=model.name).layout.title.text.endswith(model.name)
    assert table.compare(model.name, "Q4_0").data
    assert table.worst(1, "weight_error", model.name).weight_error.iloc[0] == rows.weight_error.max()
    detail = table.matrix(MATRIX, model.name)
    assert detail.stored.sum() == detail.original.sum() == original.tensors[MATRIX].params


def test_a_packed_model_is_measured_compared_and_talks(original, model, no_library):
    assert wb.memory(model, context=128).total > wb.memory(model, context=128, engine="vllm").total > 0
    assert len(wb.errors(model, "Q8_0").frame) == len(original.matrices)
    found = wb.compare(original, model, TEXT, context=64)
    assert 0 < found.kl.value < 0.5
    with wb.run(model) as chat:
        assert chat.what.startswith("the file's own weights")
        assert chat("Hello", max_tokens=3).text


def test_decoded_weights_are_written_as_they_are_read(model, tmp_path, no_library):
    drain(decoded.write_steps(model, tmp_path / "model.safetensors"))
    config = {key: value for key, value in model.config.items() if key != "quantization_config"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = wb.load(tmp_path)
    assert list(again.tensors) == list(model.tensors)
    for name in model.tensors:
        np.testing.assert_array_equal(again.read(name), model.read(name))
    assert again.tensors[MATRIX].encoding == "F32"
    assert again.tensors["model.norm.weight"].encoding == "BF16"
    assert again.nbytes == decoded.size_of(model)


@pytest.mark.parametrize("kind", ["GPTQ", "FP8 blocks"])
def test_decoded_weights_become_a_gguf(kind: str, demo: Checkpoint, tmp_path: Path) -> None:
    random, vocabulary = np.random.default_rng(0), demo.config["vocab_size"]
    embedding = random.standard_normal((vocabulary, 256)).astype(np.float32) / 16
    folder = packed.folder(tmp_path / "model", kind, WEIGHTS | {"model.embed_tokens.weight": embedding})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": vocabulary}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.hf_folder() / name, folder / name)
    model = wb.load(folder)
    made = wb.export(model, tmp_path / "out" / "made.gguf", {MATRIX: "Q8_0"})
    written = wb.load(made.path)
    assert [file.name for file in made.path.parent.iterdir()] == ["made.gguf"]
    assert written.tensors["blk.1.ffn_down.weight"].encoding == "Q8_0"
    np.testing.assert_array_equal(
        written.read("blk.1.ffn_down.weight"), formats.get("Q8_0").roundtrip(model.read(MATRIX))
    )
    kept = model.read("model.layers.0.mlp.up_proj.weight").astype(np.float16)
    np.testing.assert_array_equal(written.read("blk.0.ffn_up.weight"), kept.astype(np.float32))
    assert written.tensors["token_embd.weight"].encoding == "BF16"
    np.testing.assert_array_equal(
        written.read("token_embd.weight"), embedding.astype(ml_dtypes.bfloat16).astype(np.float32)
    )


def test_stacks_of_experts_in_mxfp4_are_measured_compared_and_talk(tmp_path):
    import torch
    import transformers

    sizes = models.GROUPED | {"intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = transformers.GptOssConfig(**sizes, sliding_window=16, rope_parameters=None)
    torch.manual_seed(0)
    float_model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in float_model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    float_model.save_pretrained(tmp_path / "original")
    tiny.write_tokenizer(tmp_path / "original")
    original = wb.load(tmp_path / "original")
    found = {}
    for name in original.tensors:
        weights = original.read(name)
        parts = packed.mxfp4(weights) if weights.ndim == 3 else {}
        found |= {f"{name}_{part}": array for part, array in parts.items()} or {name: weights}
    model = wb.load(
        packed.written(tmp_path / "made", found, original.config | {"quantization_config": {"quant_method": "mxfp4"}})
    )
    told = wb.diff(original, model)
    stacks = told.frame[told.frame.scheme == "MXFP4"]
    assert len(stacks) == 4
    assert 0 < stacks.weight_error.max() < 0.03
    assert list(told.unusual) == []
    assert wb.memory(model, context=64).total > 0
    assert 0 < wb.compare(original, model, TEXT, context=64).kl.value < 0.1
    with wb.run(model) as chat:
        assert chat("Hello", max_tokens=3).text


def test_a_gguf_is_held_against_its_folder_and_the_folder_against_it(original, tmp_path):
    """llama.cpp keeps the rows of q and k in another order; an error of 1 or 2 would say that this was forgotten."""
    file = wb.load(tiny.gguf(tmp_path / "tiny.gguf", WEIGHTS, "Q4_0"))
    by_folder = wb.errors(original, file).frame
    assert len(by_folder) == len(original.matrices)
    rounded = wb.errors(original, "Q4_0").frame
    np.testing.assert_allclose(by_folder.weight_error, rounded.weight_error, rtol=1e-3)
    by_file = wb.errors(file, original).frame.set_index("tensor").weight_error
    assert by_file.max() < 0.02
    assert wb.errors(original, tmp_path / "tiny.gguf").frame.equals(by_folder)


def test_another_model_is_no_quantized_form_of_this_one(original, tmp_path):
    other = {name.replace("model.", "other."): values for name, values in WEIGHTS.items()}
    folder = tiny.folder(tmp_path / "other", other, config=original.config)
    with pytest.raises(wb.WorkbenchError, match="none of its matrices"):
        wb.errors(original, folder)


def test_two_checkpoints_of_one_name_stay_apart(original, tmp_path):
    models = [wb.load(packed.folder(tmp_path / kind / "m", kind, WEIGHTS)) for kind in ("GPTQ", "NF4")]
    table = wb.errors(original, models)
    assert table.formats == ("m", "m (2)")
    means = table.summary.set_index("format").weight_error
    assert means["m"] != means["m (2)"]

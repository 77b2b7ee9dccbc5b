"""What the model's matrices are fed, held against hooks on the model as transformers itself loads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import workbench as wb
from tests import tiny
from workbench.measure import calibration as module
from workbench.measure.calibration import calibrate, calibrate_steps, calibration_so_far

TEXT = "A lamp in a window, a dog in the lane, and the long blue hour before the snow begins. " * 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return tiny.folder(tmp_path / "model", tiny.weights(hidden=256), dtype="F32")


def inputs_by_transformers(folder, ids):
    """Input of every linear module, [tokens, in], from a plain forward pass."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen = {}
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_pre_hook(lambda _, x, name=name: seen.__setitem__(name, x[0].flatten(0, 1).numpy()))
    with torch.inference_mode():
        model(input_ids=ids)
    return seen


def test_second_moments_and_samples_are_those_of_a_plain_forward_pass(folder):
    model = wb.load(folder)
    found = calibrate(model, TEXT, tokens=512, context=128, sampled=32)
    ids = model.tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids[0][:512].reshape(-1, 128)
    for name, x in inputs_by_transformers(folder, ids).items():
        tensor = "model.embed_tokens.weight" if name == "lm_head" else f"{name}.weight"
        np.testing.assert_allclose(found.mean_square(tensor), (x**2).mean(0), rtol=1e-3, atol=1e-6)
        chosen = np.linspace(0, len(x) - 1, 32).round().astype(int)
        np.testing.assert_allclose(found.sample(tensor), x[chosen], rtol=1e-3, atol=1e-4)
    assert found.tokens == 512


def test_a_gguf_file_is_calibrated_under_its_own_tensor_names(tmp_path):
    weights = tiny.weights(hidden=256)
    model = wb.load(tiny.gguf(tmp_path / "model.gguf", weights, "F32"))
    other = wb.load(tiny.folder(tmp_path / "folder", weights, dtype="F32"))
    from_gguf, from_folder = calibrate(model, TEXT, tokens=128), calibrate(other, TEXT, tokens=128)
    for there, here in (("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),):
        np.testing.assert_allclose(from_gguf.mean_square(there), from_folder.mean_square(here), rtol=1e-3)


def test_matrices_that_are_fed_the_same_tensor_share_its_statistics(folder):
    found = calibrate(wb.load(folder), TEXT, tokens=128)
    at = "model.layers.0.self_attn"
    assert found.inputs[f"{at}.q_proj.weight"] == found.inputs[f"{at}.v_proj.weight"]
    assert found.inputs[f"{at}.q_proj.weight"] != found.inputs[f"{at}.o_proj.weight"]


def test_a_second_call_reads_what_the_first_one_kept(folder, monkeypatch):
    model = wb.load(folder)
    first = calibrate(model, TEXT, tokens=128)
    monkeypatch.setattr(module, "_collect", lambda *_: pytest.fail("the model was run again"))
    assert calibrate(model, TEXT, tokens=128) == first


def test_a_cancelled_calibration_leaves_nothing_half_done(folder):
    model = wb.load(folder)
    steps = calibrate_steps(model, TEXT, tokens=512, context=128)
    next(steps)
    steps.close()
    assert calibration_so_far(model, TEXT, tokens=512, context=128) is None
    leftovers = list((module.files.cache_dir() / "calibration").glob("*"))
    assert leftovers == []


def test_a_context_longer_than_the_model_was_made_for_is_refused(folder):
    with pytest.raises(wb.WorkbenchError, match="512"):
        calibrate(wb.load(folder), TEXT, context=4096)

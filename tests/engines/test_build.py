"""Models from checkpoints: the same as transformers makes, with a plan's weights, whole or streamed."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.engines import models
from workbench import formats
from workbench.checkpoint import load
from workbench.engines import build
from workbench.engines.weights import Weights, chunks
from workbench.exceptions import WorkbenchError
from workbench.planning import plan_for

ARCHITECTURES = [name for name in models.CONFIGS if name != "mamba"]  # it uses weights of modules it does not call


def logits(model, ids):
    with torch.inference_mode():
        return model(ids).logits


@pytest.fixture(scope="module", params=ARCHITECTURES)
def random_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return models.save(folder, request.param), load(folder)


def test_a_loaded_model_is_the_saved_one(random_model):
    saved, checkpoint = random_model
    built = build.model_of(checkpoint, dtype="float32")
    assert torch.equal(logits(built, models.some_ids()), logits(saved, models.some_ids()))


def test_a_streamed_model_is_the_loaded_one_and_holds_nothing(random_model):
    _, checkpoint = random_model
    built, streamed = (make(checkpoint, dtype="bfloat16") for make in (build.model_of, build.streaming_model_of))
    assert torch.equal(logits(streamed, models.some_ids()), logits(built, models.some_ids()))
    assert {parameter.device.type for parameter in streamed.parameters()} == {"meta"}


def test_a_plan_changes_just_the_matrices_it_names(random_model):
    _, checkpoint = random_model
    plan = plan_for(checkpoint, "Q4_0")
    planned = build.model_of(checkpoint, plan, dtype="float32")
    assert torch.equal(
        logits(planned, models.some_ids()),
        logits(build.streaming_model_of(checkpoint, plan, dtype="float32"), models.some_ids()),
    )
    parameters = dict(planned.named_parameters())
    for name in set(parameters) & set(checkpoint.tensors):
        expected = checkpoint.read(name)
        if name in plan.formats:
            expected = plan.formats[name].roundtrip(expected)
        assert np.array_equal(parameters[name].detach().numpy(), expected), name
    assert set(parameters) & set(plan.formats)


def test_a_gguf_and_the_folder_it_was_made_from_give_the_same_logits(tmp_path):
    weights = tiny.weights()
    folder = build.model_of(load(tiny.folder(tmp_path / "m", weights)), dtype="float32")
    gguf = build.model_of(load(tiny.gguf(tmp_path / "m.gguf", weights, "F32")), dtype="float32")
    assert torch.equal(logits(gguf, models.some_ids()), logits(folder, models.some_ids()))


def test_a_tied_head_stays_tied(tmp_path):
    checkpoint = models.opened(tmp_path, "llama")
    for plan in (None, plan_for(checkpoint, "Q8_0")):
        model = build.model_of(checkpoint, plan)
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_two_sources_of_one_model_never_leave_transformers_changed(tmp_path):
    checkpoint = models.opened(tmp_path)
    logs = transformers.utils.logging
    before = torch.get_default_dtype(), logs.get_verbosity(), logs.is_progress_bar_enabled(), dict(os.environ)
    build.model_of(checkpoint, dtype="bfloat16")
    build.streaming_model_of(checkpoint, dtype="bfloat16")
    after = torch.get_default_dtype(), logs.get_verbosity(), logs.is_progress_bar_enabled(), dict(os.environ)
    assert after == before


# --- weights in pieces --------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["Q4_0", "NF4", "LLM.int8", "INT4", "FP8"])
def test_a_matrix_done_in_chunks_is_the_matrix_done_at_once(tmp_path, monkeypatch, format):
    checkpoint = load(tiny.folder(tmp_path, tiny.weights(hidden=128, intermediate=160)))
    name = "model.layers.0.mlp.down_proj.weight"
    whole = formats.get(format).roundtrip(checkpoint.read(name))
    monkeypatch.setattr("workbench.formats.rows.CHUNK", 160 * 3)
    plan = plan_for(checkpoint, {name: format})
    assert np.array_equal(Weights(checkpoint, plan).array(name), whole)


def test_chunks_cover_every_row_once_and_begin_at_multiples():
    runs = list(chunks(rows=1000, cols=4096, multiple=64))
    assert [run.start for run in runs] == list(range(0, 1000, 256))
    assert runs[-1].stop == 1000
    assert list(chunks(rows=3, cols=10**9, multiple=1)) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_importance_reaches_the_encoder(tmp_path):
    checkpoint = load(tiny.folder(tmp_path, tiny.weights()))
    name = "model.layers.0.mlp.down_proj.weight"
    importance = np.linspace(0.01, 10, 512, dtype=np.float32)
    plan = plan_for(checkpoint, {name: "IQ2_XXS"})
    got = Weights(checkpoint, plan, {name: importance}).array(name)
    assert np.array_equal(got, formats.get("IQ2_XXS").roundtrip(checkpoint.read(name), importance))


def test_a_format_that_needs_an_importance_says_how_to_get_one(tmp_path):
    checkpoint = load(tiny.folder(tmp_path, tiny.weights()))
    with pytest.raises(WorkbenchError, match="calibrate") as caught:
        build.model_of(checkpoint, plan_for(checkpoint, {"model.layers.0.mlp.down_proj.weight": "IQ2_XXS"}))
    assert caught.value.item == "IQ2_XXS"


# --- progress and cancelling --------------------------------------------------------------------


def test_progress_counts_the_bytes_of_the_checkpoint(tmp_path):
    checkpoint = models.opened(tmp_path)
    seen = list(build.model_of_steps(checkpoint))
    assert seen[-1].total == checkpoint.nbytes
    assert 0 < seen[-1].done <= checkpoint.nbytes


def test_closing_the_steps_waits_for_no_kernel_and_ends_the_work_after_it(tmp_path, monkeypatch):
    checkpoint = load(tiny.folder(tmp_path, tiny.weights()))
    slow, closed = formats.get("Q4_0"), threading.Event()
    begun, in_time = [], []

    def crawl(weights):
        begun.append(weights.shape)
        in_time.append(closed.wait(120))
        return weights

    monkeypatch.setattr(type(slow), "roundtrip", lambda self, weights, importance=None: crawl(weights))
    steps = build.model_of_steps(checkpoint, plan_for(checkpoint, "Q4_0"))
    while not begun:
        next(steps)
    steps.close()
    closed.set()
    build.model_of(checkpoint)  # begins when the work that was cancelled has ended
    assert in_time == [True]
    assert len(begun) == 1 < len(checkpoint.matrices)


# --- what cannot be built -----------------------------------------------------------------------


def changed(folder, change):
    """Rewrite the folder's one safetensors file after `change` of its tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            r"1 parameters are missing \(model.layers.1.mlp.up_proj",
        ),
        (
            lambda t: t.update({"model.other.weight": torch.ones(3, 3)}),
            r"1 parameters are unknown \(model.other.weight\)",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(7)}), r"1 parameters are misshapen \(model.norm.weight\)"),
    ],
)
def test_parameters_that_do_not_fit_are_named(tmp_path, change, found):
    models.save(tmp_path, "llama")
    changed(tmp_path, change)
    with pytest.raises(WorkbenchError, match=found):
        build.model_of(load(tmp_path))


def test_a_missing_parameter_is_named_before_anything_is_streamed(tmp_path):
    models.save(tmp_path, "llama")
    changed(tmp_path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(WorkbenchError, match=r"model\.norm\.weight"):
        build.streaming_model_of(load(tmp_path))


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"model_type": "no-such-model"}, "cannot use its config.json .model_type 'no-such-model'"),
        ({"model_type": "bert"}, "tensors do not fit the architecture 'bert'"),
        ({"num_hidden_layers": 10**9}, "its config says 1000000000 layers"),
        ({"hidden_size": 63}, "hidden size .63.|misshapen"),
    ],
)
def test_a_config_that_does_not_fit_is_an_error_that_names_the_model(tmp_path, entry, found):
    models.save(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | entry))
    with pytest.raises(WorkbenchError, match=found) as caught:
        build.model_of(load(tmp_path))
    assert tmp_path.name in caught.value.item


@pytest.mark.parametrize(("setting", "value"), [("dtype", "int3"), ("device", "cuda:99"), ("device", "nowhere")])
def test_a_dtype_or_device_that_is_not_there_lists_what_is_allowed(tmp_path, setting, value):
    checkpoint = models.opened(tmp_path)
    with pytest.raises(WorkbenchError) as caught:
        build.model_of(checkpoint, **{setting: value})
    assert caught.value.item == setting
    assert caught.value.allowed


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_bfloat16_is_for_gpus_that_compute_in_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # what a T4 says
    assert build.default_dtype(torch.device("cuda")) == expected


@pytest.mark.parametrize(("computes", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_for_cpus_that_compute_in_it(monkeypatch, computes, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: computes)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert build.default_dtype(torch.device("cpu")) == expected

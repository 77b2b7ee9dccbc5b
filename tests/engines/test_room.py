"""Asked before memory is spent: what does not fit is refused, and what runs out all the same is let go.

The memory of the machine that runs the tests cannot be used up, so what the system says of it is replaced.
"""

from __future__ import annotations

import gc
from types import SimpleNamespace

import psutil
import pytest
import torch
import transformers

from tests import tiny
from tests.engines import models
from workbench import fit
from workbench.checkpoint import Checkpoint, load
from workbench.engines import build, room, run
from workbench.engines.weights import Weights
from workbench.fit import DoesNotFit
from workbench.planning import plan_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load(tiny.folder(tmp_path_factory.mktemp("model") / "tiny", tiny.weights()))


@pytest.fixture
def memory_of(monkeypatch):
    """Makes the system say that this many bytes are available."""

    def say(nbytes):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=nbytes, total=nbytes))

    return say


def models_alive():
    gc.collect()
    return sum(isinstance(each, transformers.LlamaForCausalLM) for each in gc.get_objects())


@pytest.mark.parametrize(
    ("format", "named"), [(None, "BF16"), ("Q4_K", "BF16"), ("LLM.int8", "NF4"), ("NF4", "a context of")]
)
def test_what_does_not_fit_is_refused_before_a_weight_is_read(checkpoint, memory_of, monkeypatch, format, named):
    native = format in ("NF4", "LLM.int8")
    chosen = {"engine": "bitsandbytes" if native else "transformers", "dtype": "f32", "context": 512, "device": "cpu"}
    needed = fit.memory(checkpoint, format, **chosen)
    memory_of(needed.total - 1)
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(DoesNotFit) as caught:
        run(checkpoint, format, dtype="float32")
    said = caught.value
    assert said.item == "running tiny"
    for figure in (needed.total, needed.weights, needed.cache):
        assert fit.guard.figures.size(figure) in said.found
    assert "cpu has" in said.found
    assert named in said.do
    assert "anyway=True" in said.do


def test_the_override_runs_it_and_is_carried_to_its_prompts(checkpoint, memory_of):
    memory_of(1000)
    with run(checkpoint, "Q8_0", anyway=True) as engine:
        assert engine("hello " * 30, max_tokens=2).token_ids


def test_a_model_that_is_loaded_for_a_measurement_is_asked_about_too(checkpoint, memory_of):
    memory_of(1000)
    with pytest.raises(DoesNotFit, match="loading tiny: it needs"):
        build.model_of(checkpoint, plan_for(checkpoint, "Q4_K"))


def test_decoded_weights_cost_what_the_original_costs(checkpoint):
    original = room.needed(checkpoint, None, torch.float32, CPU)
    decoded = room.needed(checkpoint, plan_for(checkpoint, "Q2_K"), torch.float32, CPU)
    assert decoded.total == original.total
    assert original.weights == 4 * checkpoint.params
    assert original.context == 512  # no more than the model was made for


def test_a_model_of_which_nothing_can_be_estimated_runs(tmp_path):
    checkpoint = models.opened(tmp_path)
    checkpoint.config["num_key_value_heads"] = "two"  # as fit reads it; transformers reads the file itself
    assert room.needed(checkpoint, None, torch.float32, CPU) is None
    with run(checkpoint) as engine:
        assert engine("hello", max_tokens=2).prompt_tokens


@pytest.mark.parametrize(
    ("format", "error"), [(None, MemoryError()), ("NF4", RuntimeError("DefaultCPUAllocator: can't allocate memory"))]
)
def test_running_out_while_loading_leaves_nothing_of_the_model(checkpoint, monkeypatch, error, format):
    read = []

    def tensor(self, name):
        read.append(name)
        if len(read) == 8:
            assert models_alive() > before
            raise error
        return original(self, name)

    original, before = Weights.tensor, models_alive()
    monkeypatch.setattr(Weights, "tensor", tensor)
    with pytest.raises(DoesNotFit, match="memory ran out") as caught:
        run(checkpoint, format)
    assert "the estimate was" in caught.value.found
    assert models_alive() == before  # while the error is still held
    monkeypatch.setattr(Weights, "tensor", original)
    build.model_of(checkpoint)  # and the next one is not kept waiting


def test_running_out_while_answering_keeps_what_was_said_and_frees_the_cache(checkpoint, monkeypatch):
    with run(checkpoint) as engine:
        engine.ends = frozenset()
        stream = engine.stream("hello", max_tokens=50)
        said = [next(stream) for _ in range(3)]
        monkeypatch.setattr(torch, "tensor", lambda *_, **__: torch.empty(1 << 60, dtype=torch.uint8))
        with pytest.raises(DoesNotFit, match="a reply of tiny: memory ran out"):
            next(stream)
        monkeypatch.undo()
        assert stream.reply.text == "".join(said)
        gc.collect()
        assert not any(isinstance(each, transformers.DynamicCache) for each in gc.get_objects())
        assert engine("hello", max_tokens=2).token_ids


def test_a_prompt_too_long_for_what_is_left_is_refused_before_it_is_read(checkpoint, memory_of, monkeypatch):
    monkeypatch.setattr(room, "TOKENS", 16)
    with run(checkpoint) as engine:
        memory_of(1000)
        engine.model.register_forward_pre_hook(lambda *_: pytest.fail("the prompt was read"))
        with pytest.raises(DoesNotFit, match=r"a prompt of .* tokens: it needs") as caught:
            engine("hello " * 30)
        assert "a shorter prompt" in caught.value.do

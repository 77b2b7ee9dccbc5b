"""The engine of ExLlamaV2. No CUDA device is here, so no ExLlamaV2 ran: the adapter's calls are held against the
library's own source, and its behaviour is seen with a stand-in that computes by transformers on the CPU."""

from __future__ import annotations

import ast
import inspect
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

import workbench as wb
from tests.engines import models
from workbench.checkpoint import wheel
from workbench.engines import build, exllamav2, exllamav2_library, run
from workbench.exceptions import WorkbenchError
from workbench.progress import drain

WHEEL = wheel.Wheel("exllamav2==0.3.2", "7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e", 1_519_385)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return models.opened(tmp_path_factory.mktemp("exllamav2") / "tiny")


# --- the library's own source -------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Class -> method -> the arguments it has, of the released library; nothing of it is imported."""
    folder = tmp_path_factory.mktemp("wheel")
    archive = drain(wheel.fetch_steps(WHEEL, folder, "ExLlamaV2's source"))
    found: dict[str, dict[str, list[str]]] = {}
    with zipfile.ZipFile(archive) as opened:
        for name in ("config", "model", "cache", "linear"):
            for node in ast.parse(opened.read(f"exllamav2/{name}.py")).body:
                if isinstance(node, ast.ClassDef):
                    methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                    found[node.name] = {each.name: [arg.arg for arg in each.args.args] for each in methods}
        found["exports"] = {"": _exported(ast.parse(opened.read("exllamav2/__init__.py")))}
    return found


def _exported(tree: ast.Module) -> list[str]:
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [alias.name for node in imports for alias in node.names]


def test_every_call_of_the_adapter_fits_the_librarys_signatures(source):
    assert source["ExLlamaV2Config"]["__init__"] == ["self", "model_dir"]
    assert source["ExLlamaV2"]["__init__"][:2] == ["self", "config"]
    assert {"cache", "callback"} <= set(source["ExLlamaV2"]["load_autosplit"])
    forward = source["ExLlamaV2"]["forward"]
    assert forward[:3] == ["self", "input_ids", "cache"]
    assert {"last_id_only", "abort_event", "cpu_logits"} <= set(forward)
    assert source["ExLlamaV2"]["unload"] == ["self"]
    assert source["ExLlamaV2Linear"]["get_weight_tensor_dq"] == ["self"]  # of the benchmark
    for name, _ in exllamav2.CACHES.values():
        assert {"model", "max_seq_len", "lazy"} <= set(source[name]["__init__"])
        assert name in source["exports"][""]
    assert {"ExLlamaV2", "ExLlamaV2Config"} <= set(source["exports"][""])


def test_the_stand_in_has_the_arguments_of_the_library(source):
    """So that what the tests below see with it, they would see with the library."""
    for name, method in (("ExLlamaV2", "forward"), ("ExLlamaV2", "load_autosplit"), ("ExLlamaV2Cache_Q4", "__init__")):
        ours = list(inspect.signature(getattr(getattr(StandIn, name), method)).parameters)
        assert set(ours) <= set(source[name][method])


# --- a stand-in for a CUDA device ---------------------------------------------------------------


class StandIn(types.ModuleType):
    """What the adapter uses of exllamav2, computed by transformers on the CPU."""

    __version__ = "stand-in"

    class ExLlamaV2Config:
        def __init__(self, model_dir):
            self.model_dir, self.max_seq_len, self.vocab_size = model_dir, 0, 0

    class ExLlamaV2Cache:
        def __init__(self, model, max_seq_len=-1, lazy=False):
            self.max_seq_len, self.current_seq_len, self.read = max_seq_len, 0, []

    class ExLlamaV2Cache_Q4(ExLlamaV2Cache):
        def __init__(self, model, max_seq_len=-1, lazy=False):
            super().__init__(model, max_seq_len, lazy)

    ExLlamaV2Cache_Q6 = ExLlamaV2Cache_Q8 = ExLlamaV2Cache_Q4

    class Linear:
        def __init__(self, linear):
            self.linear = linear

        def get_weight_tensor_dq(self):
            return torch.nn.functional.pad(self.linear.weight.data.T.half(), (0, 8))

    class ExLlamaV2:
        def __init__(self, config):
            self.config = config
            self.unloaded = False

        def load_autosplit(self, cache, callback=None):
            self.inner = build.model_of(wb.load(self.config.model_dir), dtype="float32", device="cpu")
            self.config.vocab_size = self.inner.config.vocab_size
            self.modules_dict = {
                name: StandIn.Linear(each)
                for name, each in self.inner.named_modules()
                if isinstance(each, torch.nn.Linear)
            }
            callback(1, 2)
            callback(2, 2)

        def forward(self, input_ids, cache, last_id_only=False, abort_event=None, cpu_logits=False):
            if abort_event is not None and abort_event.is_set():
                return None
            cache.read = [*cache.read[: cache.current_seq_len], *input_ids[0].tolist()]
            cache.current_seq_len = len(cache.read)
            assert cache.current_seq_len <= cache.max_seq_len
            scores = self.inner(torch.tensor([cache.read])).logits[:, -input_ids.shape[1] :]
            scores = torch.nn.functional.pad(scores, (0, 24), value=-65504.0)  # as its head is, to 32 columns
            return scores[:, -1:] if last_id_only else scores

        def unload(self):
            self.unloaded = True


@pytest.fixture
def library(monkeypatch):
    return put_in_place(monkeypatch)


def put_in_place(monkeypatch):
    """Let the stand-in be found where the library would be."""
    made = StandIn("exllamav2")
    monkeypatch.setitem(sys.modules, "exllamav2", made)
    monkeypatch.setattr(exllamav2_library, "missing", lambda: [])
    monkeypatch.setattr(exllamav2, "DEVICE", "cpu")
    monkeypatch.setattr(exllamav2, "held", lambda: 0)
    return made


def test_it_answers_as_transformers_does(checkpoint, library):
    with run(checkpoint, dtype="float32", device="cpu") as other, run(checkpoint, engine="exllamav2") as engine:
        for settings in ({}, {"temperature": 1.0, "seed": 3, "top_k": 20}):
            asked = {"max_tokens": 12, **settings}
            assert engine("Hello", **asked).token_ids == other("Hello", **asked).token_ids
        assert engine("Again", max_tokens=8).text == other("Again", max_tokens=8).text  # the cache began anew
        assert engine.where == "cpu"


def test_it_is_compared_by_its_own_scores(checkpoint, library):
    text = "the lamp is on the table and the sea is far away " * 40
    with run(checkpoint, engine="exllamav2", kv="q4") as engine:
        report = wb.compare(checkpoint, engine, text, context=64, device="cpu")
    assert abs(report.kl.value) < 1e-6
    assert "ExLlamaV2" in report.computed[1]
    assert "q4" in report.computed[1]


def test_the_columns_that_its_head_is_padded_with_are_no_tokens(checkpoint, library):
    with run(checkpoint, engine="exllamav2") as engine:
        assert engine.logits(np.arange(3, 9)).shape == (6, engine.known)


def test_it_is_stopped_between_tokens_and_closing_frees_the_model(checkpoint, library):
    engine = run(checkpoint, engine="exllamav2")
    engine.ends = frozenset()
    stream = engine.stream("Hello", max_tokens=200)
    next(stream)
    stream.stop()
    assert stream.reply is not None
    assert stream.reply.finish == "stopped"
    model = engine._loaded.model
    engine.close()
    assert model.unloaded
    with pytest.raises(WorkbenchError, match="closed"):
        engine("Hello")


def test_a_prompt_longer_than_the_context_is_refused(checkpoint, library):
    with run(checkpoint, engine="exllamav2", context=32) as engine:
        with pytest.raises(WorkbenchError, match="context is 32"):
            engine("a word " * 40)
        assert engine("Hi", max_tokens=4).tokens
        with pytest.raises(WorkbenchError):
            engine.logits(np.arange(33))


# --- what is said where it cannot run -----------------------------------------------------------


def test_all_that_is_missing_is_said_before_the_library_is_imported(checkpoint):
    with pytest.raises(WorkbenchError) as caught:
        run(checkpoint, engine="exllamav2")
    assert "the extra `exllamav2`" in caught.value.found
    assert "NVIDIA GPU" in caught.value.found
    assert "exllamav2" not in sys.modules


@pytest.mark.parametrize("kv", ["q5", ("q8", "q4"), 4, "q8_0"])
def test_a_cache_that_it_does_not_have_lists_those_it_has(kv, checkpoint):
    with pytest.raises(WorkbenchError, match="f16, q8, q6, q4"):
        run(checkpoint, engine="exllamav2", kv=kv)


@pytest.mark.parametrize("context", [0, 257, True, "many"])
def test_a_context_longer_than_trained_is_refused(context, checkpoint):
    with pytest.raises(WorkbenchError, match="1 to 256"):
        run(checkpoint, engine="exllamav2", context=context)


def test_what_it_does_not_read_is_refused(tmp_path):
    model = models.opened(tmp_path / "model")
    model.config["quantization_config"] = {"quant_method": "awq"}
    with pytest.raises(WorkbenchError, match="does not read 'awq'"):
        run(model, engine="exllamav2")
    for settings in ({"bits": 8}, {"bits": 4, "dynamic": {"+:.*down_proj": {"bits": 8}, "-:.*head": {}}}):
        model.config["quantization_config"] = {"quant_method": "gptq", **settings}
        with pytest.raises(WorkbenchError, match="does not read GPTQ in 8 bits"):
            run(model, engine="exllamav2")
    with pytest.raises(WorkbenchError, match="GGUF"):
        run(wb.load("demo"), engine="exllamav2")
    with pytest.raises(WorkbenchError, match="no such option"):
        run(model, "Q4_0", engine="exllamav2")

"""Held against llama.cpp itself: the buffers that it says it allocates."""

from __future__ import annotations

import pytest

from tests.fit import holes
from tests.fit.llama_cpp import MIB, report
from tests.fit.published import CONFIGS
from workbench.fit import memory

PRINTED = MIB / 100  # its log rounds to hundredths of a MiB


@pytest.mark.parametrize(
    ("context", "kv", "batch"),
    [(256, ("f16", "f16"), 1), (5000, ("q8_0", "q4_0"), 1), (1024, ("f16", "q8_0"), 3), (512, ("f32", "bf16"), 1)],
)
def test_weights_and_cache_are_what_llama_cpp_allocates(gguf_file, context, kv, batch):
    found, said = memory(gguf_file, context=context, kv=kv, batch=batch), report(gguf_file, context, kv=kv, batch=batch)
    assert found.weights == pytest.approx(said.weights, abs=PRINTED)
    assert found.cache == pytest.approx(said.cache, abs=2 * PRINTED)
    assert found.parts["compute"] == pytest.approx(said.compute + said.output, rel=0.1, abs=5 * PRINTED)


# As many layers as show each kind of them; the widths are the published ones.
LAYERS = {
    **{"Llama 3.1 8B": 2, "Mistral 7B v0.1": 2, "Mixtral 8x7B": 2, "Qwen2.5 7B": 2, "Qwen3 8B": 2, "Qwen3 30B A3B": 2},
    **{"Gemma 2 9B": 4, "Gemma 3 1B": 7, "Phi 3 mini": 2, "DeepSeek V3": 4, "gpt-oss 20B": 4, "Qwen3 Next 80B A3B": 4},
    **{"Falcon H1 1.5B": 2, "Mamba 130M": 2, "StarCoder 2 3B": 2},
}
LINEAR = ("Qwen3 Next 80B A3B", "Falcon H1 1.5B", "Mamba 130M")  # their work space is an approximation


@pytest.mark.parametrize("name", LAYERS)
def test_a_published_model_is_planned_as_llama_cpp_plans_it(name, tmp_path):
    config = {**CONFIGS[name], "num_hidden_layers": LAYERS[name], "vocab_size": 1024}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][: LAYERS[name]]
    kv = ("f16", "f16") if name in ("DeepSeek V3", "Mamba 130M") else ("q8_0", "f16")  # one has no values, one no keys
    holes.write(tmp_path / "model.gguf", config)
    said = report(tmp_path / "model.gguf", 6000, kv=kv, dry=True)
    for source, format in ((tmp_path / "model.gguf", None), (config, "Q4_0")):
        found = memory(source, format, context=6000, kv=kv)
        assert found.parts["kv cache"] == pytest.approx(said.cache, abs=4 * PRINTED)
        assert found.parts["states"] == pytest.approx(said.states, abs=PRINTED)
        work = found.parts["compute"]
        assert work == pytest.approx(said.compute + said.output, rel=0.1 if name in LINEAR else 0.01)

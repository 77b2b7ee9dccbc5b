"""A config from a stranger: named, never zero, negative, infinite or a crash."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fit.published import CONFIGS
from workbench.exceptions import WorkbenchError
from workbench.fit import memory, metadata
from workbench.fit.config import MOST_LAYERS

GOOD = CONFIGS["Llama 3.1 8B"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": -3}, "num_hidden_layers is -3"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 10**400}, "num_hidden_layers is a number of 1329 bits"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers is '32'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"num_hidden_layers": math.nan}, "num_hidden_layers is nan"),
        ({"num_hidden_layers": math.inf}, "num_hidden_layers is inf"),
        ({"num_hidden_layers": [32]}, "num_hidden_layers is"),
        ({"num_hidden_layers": None}, "does not say num_hidden_layers"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"hidden_size": {}}, "hidden_size is {}"),
        ({"hidden_size": 4095}, "hidden_size is 4095"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 7}, "num_key_value_heads is 7"),
        ({"num_key_value_heads": 64}, "num_key_value_heads is 64"),
        ({"intermediate_size": 10**12}, "intermediate_size is 1000000000000"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'"),
        ({"layer_types": ["full_attention"]}, "layer_types is a list of 1"),
        ({"layer_types": [1] * 32}, "layer_types is"),
        ({"layer_types": ["sliding_attention"] * 32}, "sliding_window"),
        ({"kv_lora_rank": 512}, "does not say qk_rope_head_dim"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_the_name_of_its_key(change, named):
    with pytest.raises(WorkbenchError) as caught:
        memory({**GOOD, **change})
    assert named in str(caught.value)
    assert caught.value.do


def test_more_experts_in_use_than_there_are_is_refused():
    with pytest.raises(WorkbenchError, match="num_experts_per_tok is 9"):
        memory({**CONFIGS["Mixtral 8x7B"], "num_experts_per_tok": 9})


def test_sharing_keys_with_no_layer_that_keeps_any_is_refused():
    with pytest.raises(WorkbenchError, match="num_kv_shared_layers is 33"):
        memory({**CONFIGS["Gemma 3n E4B"], "num_kv_shared_layers": 33})


@pytest.mark.parametrize("config", [{}, {"model_type": "llama"}, {"text_config": {}}, {"model_type": None}])
def test_a_config_without_sizes_is_refused(config):
    with pytest.raises(WorkbenchError, match="does not say num_hidden_layers"):
        memory(config)


def test_an_unknown_architecture_is_taken_for_a_llama_and_marked_as_an_estimate():
    known, unknown = memory(GOOD), memory({**GOOD, "model_type": "<b>quux</b>"})
    assert unknown.total == known.total
    assert unknown.estimate
    assert not known.estimate
    assert "was taken for a Llama" in str(unknown)
    assert "(estimate)" in str(unknown)
    assert "<b>quux" not in unknown._repr_html_()


def test_a_layer_of_an_unknown_kind_is_said_to_be_assumed():
    found = memory({**GOOD, "layer_types": ["full_attention"] * 31 + ["quantum_attention"]})
    assert found.estimate
    assert any("quantum_attention" in note for note in found.notes)


def test_weights_that_are_published_quantized_are_an_estimate_from_the_config_alone():
    assert any("fp8" in note for note in memory(CONFIGS["DeepSeek V3"]).notes)
    assert memory(CONFIGS["gpt-oss 20B"]).estimate


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"context": 0}, "context"),
        ({"context": -5}, "context"),
        ({"context": 10**18}, "context"),
        ({"context": 4096.0}, "context"),
        ({"batch": 0}, "batch"),
        ({"engine": "ollama"}, "llama.cpp, transformers"),
        ({"format": "Q9_Z"}, "no recipe or format"),
        ({"format": "NF4"}, "llama.cpp does not run this format"),
        ({"format": "Q4_K_M", "engine": "bitsandbytes"}, "bitsandbytes does not run this format"),
        ({"device": "RTX 9999"}, "no device of that name"),
        ({"device": "0 GB"}, "no device of that name"),
        ({"dtype": "int8", "engine": "transformers"}, "dtype"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_with_what_is_allowed(settings, named):
    with pytest.raises(WorkbenchError) as caught:
        memory(GOOD, **settings)
    assert named in str(caught.value)
    assert caught.value.allowed


def test_the_largest_model_that_is_let_through_has_a_finite_price():
    found = memory({**GOOD, "num_hidden_layers": MOST_LAYERS}, "Q4_K_M", context=1 << 30, batch=1 << 20)
    assert math.isfinite(found.total)


METADATA = {
    **{"general.architecture": "llama", "llama.block_count": 2, "llama.embedding_length": 256},
    **{"llama.attention.head_count": 4, "llama.feed_forward_length": 512},
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"llama.block_count": 0}, "llama.block_count is 0"),
        ({"llama.block_count": 10**9}, "llama.block_count is 1000000000"),
        ({"llama.block_count": "2"}, "llama.block_count is '2'"),
        ({"llama.embedding_length": -1}, "llama.embedding_length is -1"),
        ({"llama.attention.head_count": [4]}, "the length of llama.attention.head_count is 1"),
        ({"llama.attention.head_count_kv": [4, "x"]}, "llama.attention.head_count_kv is 'x'"),
        ({"llama.attention.key_length": 1 << 40}, "llama.attention.key_length is 1099511627776"),
        ({"general.architecture": "other"}, "other.block_count is None"),
    ],
)
def test_the_metadata_of_a_gguf_that_cannot_be_is_refused_by_the_name_of_its_key(change, named):
    with pytest.raises(WorkbenchError) as caught:
        metadata.describe({**METADATA, **change}, [])
    assert named in str(caught.value)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=4)
)


@pytest.mark.parametrize(
    "name", ["Llama 3.1 8B", "DeepSeek V3", "Gemma 3n E4B", "Jamba v0.1", "Falcon H1 1.5B", "GPT-2"]
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_of_any_key_is_priced_or_refused(name, data):
    config = dict(CONFIGS[name])
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        config[key] = data.draw(JUNK)
    engine = data.draw(st.sampled_from(["llama.cpp", "transformers", "bitsandbytes", "vllm"]))
    try:
        found = memory(config, context=data.draw(st.integers(1, 10**6)), engine=engine)
    except WorkbenchError:
        return
    assert all(isinstance(nbytes, int) and nbytes >= 0 for nbytes in found.parts.values())
    assert found.weights > 0
    assert found.total > found.weights

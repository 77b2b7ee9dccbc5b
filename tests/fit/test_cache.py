"""The cache of keys and values: types with their scales, rounding, sequences, by the rules of each engine."""

from __future__ import annotations

import pytest

from tests.fit.published import CONFIGS
from workbench.exceptions import WorkbenchError
from workbench.fit import cache
from workbench.fit.layout import describe

LLAMA = describe(CONFIGS["Llama 3.1 8B"])  # 32 layers, 1024 values for keys and for values


def tokens(kv, context=4096, engine="llama.cpp", batch=1):
    return cache.nbytes(LLAMA, context, batch, cache.type_names(kv, engine), engine).tokens


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        # 1024 values: 32 blocks of 32, each with a 2-byte scale (and a 2-byte minimum in the _1 types)
        *[("f32", 4096), ("f16", 2048), ("bf16", 2048), ("q8_0", 32 * 34), ("q5_1", 32 * 24), ("q5_0", 32 * 22)],
        *[("q4_1", 32 * 20), ("q4_0", 32 * 18), ("iq4_nl", 32 * 18)],
    ],
)
def test_a_block_type_costs_its_codes_and_its_scales(kind, row):
    assert tokens(kind) == 32 * 4096 * 2 * row


def test_keys_and_values_may_be_kept_in_different_types():
    assert tokens(("q8_0", "q4_0")) == 32 * 4096 * (32 * 34 + 32 * 18)
    assert tokens(("F16", "Q8_0")) == 32 * 4096 * (2048 + 32 * 34)


def test_llama_cpp_rounds_each_sequence_up_to_256_cells():
    assert tokens("f16", context=4000) == tokens("f16", context=4096)
    assert tokens("f16", context=4097) == tokens("f16", context=4352)
    assert tokens("f16", context=1000, batch=3) == 3 * tokens("f16", context=1024)


def test_vllm_rounds_up_to_blocks_of_16_and_transformers_not_at_all():
    assert tokens("f16", context=1001, engine="vllm") == 32 * 1008 * 2 * 2048
    assert tokens("f16", context=1001, engine="transformers") == 32 * 1001 * 2 * 2048
    assert tokens("fp8", context=1024, engine="vllm") == 32 * 1024 * 2 * 1024


def test_a_window_longer_than_the_context_costs_what_the_context_costs():
    gemma = describe(CONFIGS["Gemma 2 9B"])
    for engine in ("llama.cpp", "transformers"):
        assert cache.nbytes(gemma, 1024, 1, ("f16", "f16"), engine).tokens == 42 * 1024 * 2 * 2048 * 2


def test_a_type_the_engine_does_not_know_is_refused_with_those_it_does():
    for kv, engine in (("q8_0", "transformers"), ("fp8", "llama.cpp"), ("int3", "llama.cpp"), ("q4_0", "vllm")):
        with pytest.raises(WorkbenchError, match="f16") as caught:
            cache.type_names(kv, engine)
        assert engine in str(caught.value)
    with pytest.raises(WorkbenchError, match="one type, or two"):
        cache.type_names(("f16", "f16", "f16"), "llama.cpp")


def test_heads_that_are_no_whole_blocks_are_refused_as_llama_cpp_does():
    narrow = describe({**CONFIGS["Llama 3.1 8B"], "head_dim": 80})
    with pytest.raises(WorkbenchError, match="80 wide"):
        cache.nbytes(narrow, 4096, 1, ("q8_0", "f16"), "llama.cpp")
    assert cache.nbytes(narrow, 4096, 1, ("f16", "f16"), "llama.cpp").tokens == 32 * 4096 * 2 * 8 * 80 * 2

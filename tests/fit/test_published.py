"""Published models by their config alone: parameters as their authors count them, caches derived by hand."""

from __future__ import annotations

import pytest

from tests.fit.published import CONFIGS
from workbench.fit import cache, memory
from workbench.fit.layout import TEXT_ONLY, describe

F16 = ("f16", "f16")

PARAMETERS = {
    # as the hub counts the published safetensors, or the paper the weights
    **{"Llama 2 7B": 6_738_415_616, "Llama 3.1 8B": 8_030_261_248, "Llama 3.2 1B": 1_235_814_400},
    **{"Mistral 7B v0.1": 7_241_732_096, "Mixtral 8x7B": 46_702_792_704, "Qwen2.5 7B": 7_615_616_512},
    **{"Qwen3 8B": 8_190_735_360, "Qwen3 30B A3B": 30_532_122_624, "Gemma 2 9B": 9_241_705_984},
    **{"Gemma 3 1B": 999_885_952, "Phi 2": 2_779_683_840, "Phi 3 mini": 3_821_079_552, "Phi 4": 14_659_507_200},
    **{"DeepSeek V2 Lite": 15_706_484_224, "gpt-oss 20B": 20_914_757_184, "Jamba v0.1": 51_570_323_328},
    # without the 58 x 256 biases of its router, which are no parameters in transformers
    "DeepSeek V3": 671_026_419_200 - 58 * 256,
    **{"Mamba 130M": 129_135_360, "GPT-NeoX 20B": 20_554_567_680, "Pythia 1.4B": 1_414_647_808},
    **{"GPT-2": 124_439_808, "Falcon 7B": 6_921_720_704, "Command R": 34_980_831_232},
    "StarCoder 2 3B": 3_030_371_328,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_config_alone_gives_the_published_number_of_parameters(name):
    assert sum(describe(CONFIGS[name]).params.values()) == PARAMETERS[name]


def test_of_a_mixture_of_experts_a_token_passes_what_its_authors_say():
    assert describe(CONFIGS["Mixtral 8x7B"]).active_params == 12_879_925_248  # "12.9B active parameters"
    assert round(describe(CONFIGS["Qwen3 30B A3B"]).active_params / 1e9, 1) == 3.4  # "3.3B activated", rounded down
    assert round(describe(CONFIGS["DeepSeek V3"]).active_params / 1e9) == 38  # "37B activated", without the embedding
    oss = describe(CONFIGS["gpt-oss 20B"])
    assert round((oss.active_params - oss.params["embedding"]) / 1e9, 1) == 3.6  # "3.6B active", without the embedding


def test_the_weights_of_a_llama_are_those_derived_by_hand():
    # a layer: queries and output 4096 x 4096, keys and values 1024 x 4096, gate, up and down 14336 x 4096
    layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096
    outside = 2 * 128256 * 4096  # embedding and head
    norms = (2 * 32 + 1) * 4096
    llama = CONFIGS["Llama 3.1 8B"]
    # Q8_0: 34 bytes for 32 weights; the converter keeps norms in float32
    assert memory(llama, "Q8_0").weights == (32 * layer + outside) * 34 // 32 + 4 * norms
    assert memory(llama, engine="transformers").weights == 2 * (32 * layer + outside + norms)
    # NF4: half a byte a weight, 4 bytes for each 64, a table of 64 bytes for each of 7 matrices
    layers = 32 * (layer // 2 + layer // 64 * 4 + 7 * 64)
    assert memory(llama, "NF4", engine="bitsandbytes").weights == layers + 2 * (outside + norms)


def test_of_a_mixture_all_experts_are_resident_and_two_of_eight_active():
    # an expert: gate, up and down 14336 x 4096, in 32 layers
    expert, found = 32 * 3 * 14336 * 4096, memory(CONFIGS["Mixtral 8x7B"], "Q8_0")
    assert found.parts["experts"] == 8 * expert * 34 // 32
    assert found.weights - found.active_weights == 6 * expert * 34 // 32


# At 8,192 tokens of one sequence, in 2-byte floats: llama.cpp, transformers, vLLM.
# A cache holds layers x tokens x (key values + value values) x 2 bytes.
# llama.cpp keeps a window of w tokens in w + 512 cells, rounded up to 256; transformers in w;
# vLLM in w - 1 + 2048 tokens, rounded up to blocks of 16, and one block more.
TOKENS = 8192
BY_HAND = {
    # every head keeps its own keys and values: 32 x 128 = 4096 values
    "Llama 2 7B": (32 * TOKENS * 2 * 4096 * 2,) * 3,
    # grouped queries: 8 heads x 128 = 1024 values
    "Llama 3.1 8B": (32 * TOKENS * 2 * 1024 * 2,) * 3,
    # 8 heads x 64 = 512
    "Llama 3.2 1B": (16 * TOKENS * 2 * 512 * 2,) * 3,
    # a window of 4096 in every layer, of which llama.cpp makes no use; vLLM: 4095 + 2048 -> 6144, and 16
    "Mistral 7B v0.1": (
        32 * TOKENS * 2 * 1024 * 2,
        32 * 4096 * 2 * 1024 * 2,
        32 * (6144 + 16) * 2 * 1024 * 2,
    ),
    "Mixtral 8x7B": (32 * TOKENS * 2 * 1024 * 2,) * 3,
    # 4 heads x 128 = 512; its window is switched off
    "Qwen2.5 7B": (28 * TOKENS * 2 * 512 * 2,) * 3,
    "Qwen3 8B": (36 * TOKENS * 2 * 1024 * 2,) * 3,
    "Qwen3 30B A3B": (48 * TOKENS * 2 * 512 * 2,) * 3,
    # every second of 42 layers has a window of 4096; 8 heads x 256 = 2048; llama.cpp: 4096 + 512 = 18 x 256
    "Gemma 2 9B": (
        (21 * TOKENS + 21 * 4608) * 2 * 2048 * 2,
        (21 * TOKENS + 21 * 4096) * 2 * 2048 * 2,
        (21 * TOKENS + 21 * (6144 + 16)) * 2 * 2048 * 2,
    ),
    # every sixth of 26 layers (6, 12, 18, 24) sees everything, the others 512; 1 head x 256
    "Gemma 3 1B": (
        (4 * TOKENS + 22 * 1024) * 2 * 256 * 2,
        (4 * TOKENS + 22 * 512) * 2 * 256 * 2,
        (4 * TOKENS + 22 * (2560 + 16)) * 2 * 256 * 2,
    ),
    # 34 layers, 5 of which see everything, the others 1024; 4 heads x 256 by transformers' defaults
    "Gemma 3 4B": (
        (5 * TOKENS + 29 * 1536) * 2 * 1024 * 2,
        (5 * TOKENS + 29 * 1024) * 2 * 1024 * 2,
        (5 * TOKENS + 29 * (3072 + 16)) * 2 * 1024 * 2,
    ),
    # the last 15 of 35 layers keep nothing of their own; of the first 20, every fifth sees everything, others 512
    "Gemma 3n E4B": (
        (4 * TOKENS + 16 * 1024) * 2 * 512 * 2,
        (4 * TOKENS + 16 * 512) * 2 * 512 * 2,
        (4 * TOKENS + 16 * (2560 + 16)) * 2 * 512 * 2,
    ),
    "Phi 2": (32 * TOKENS * 2 * 2560 * 2,) * 3,
    # a window of 2047 in every layer, of which llama.cpp makes no use; vLLM: 2046 + 2048 -> 4096, and 16
    "Phi 3 mini": (
        32 * TOKENS * 2 * 3072 * 2,
        32 * 2047 * 2 * 3072 * 2,
        32 * (4096 + 16) * 2 * 3072 * 2,
    ),
    # 10 heads x 128 = 1280
    "Phi 4": (40 * TOKENS * 2 * 1280 * 2,) * 3,
    # one latent of 512 and one rotated part of 64 for all heads, from which keys and values are made
    "DeepSeek V2 Lite": (27 * TOKENS * (512 + 64) * 2,) * 3,
    "DeepSeek V3": (61 * TOKENS * (512 + 64) * 2,) * 3,
    # every second of 24 layers has a window of 128: 640 cells -> 768; 2175 tokens -> 2176; 8 heads x 64 = 512
    "gpt-oss 20B": (
        (12 * TOKENS + 12 * 768) * 2 * 512 * 2,
        (12 * TOKENS + 12 * 128) * 2 * 512 * 2,
        (12 * TOKENS + 12 * (2176 + 16)) * 2 * 512 * 2,
    ),
    # 4 of 32 layers have attention, 8 heads x 128
    "Jamba v0.1": (4 * TOKENS * 2 * 1024 * 2,) * 3,
    # attention beside a state in each of 24 layers, 2 heads x 128
    "Falcon H1 1.5B": (24 * TOKENS * 2 * 256 * 2,) * 3,
    # every fourth of 48 layers has attention, 2 heads x 256
    "Qwen3 Next 80B A3B": (12 * TOKENS * 2 * 512 * 2,) * 3,
    "Mamba 130M": (0,) * 3,
    "GPT-NeoX 20B": (44 * TOKENS * 2 * 6144 * 2,) * 3,
    "Pythia 1.4B": (24 * TOKENS * 2 * 2048 * 2,) * 3,
    "GPT-2": (12 * TOKENS * 2 * 768 * 2,) * 3,
    # 71 query heads of 64 share one key and value head
    "Falcon 7B": (32 * TOKENS * 2 * 64 * 2,) * 3,
    "Command R": (40 * TOKENS * 2 * 8192 * 2,) * 3,
    # 2 heads x 128, a window of 4096 in every layer
    "StarCoder 2 3B": (
        30 * TOKENS * 2 * 256 * 2,
        30 * 4096 * 2 * 256 * 2,
        30 * (6144 + 16) * 2 * 256 * 2,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_cache_of_keys_and_values_is_the_one_derived_by_hand(name):
    described = describe(CONFIGS[name])
    found = [cache.nbytes(described, TOKENS, 1, F16, engine).tokens for engine in ("llama.cpp", "transformers", "vllm")]
    assert found == list(BY_HAND[name])


# What does not grow with the context, for each sequence. llama.cpp: float32, one input of the convolution less
# than its kernel is long. transformers: the inputs in 2-byte floats, the recurrence in float32.
STATES_BY_HAND = {
    # 28 layers of Mamba: 2 x 4096 = 8192 channels, 16 values of state each, a kernel of 4
    "Jamba v0.1": (28 * (3 * 8192 + 8192 * 16) * 4, 28 * (4 * 8192 * 2 + 8192 * 16 * 4)),
    # 24 layers of Mamba 2: 3072 channels with 256 values of state; convolved with 2 x 256 more
    "Falcon H1 1.5B": (24 * (3 * 3584 + 3072 * 256) * 4, 24 * (4 * 3584 * 2 + 3072 * 256 * 4)),
    # 36 gated delta nets: 32 heads with a state of 128 x 128; 2 x 16 x 128 + 32 x 128 = 8192 channels
    "Qwen3 Next 80B A3B": (
        36 * (3 * 8192 + 32 * 128 * 128) * 4,
        36 * (4 * 8192 * 2 + 32 * 128 * 128 * 4),
    ),
    "Mamba 130M": (24 * (3 * 1536 + 1536 * 16) * 4, 24 * (4 * 1536 * 2 + 1536 * 16 * 4)),
}


@pytest.mark.parametrize("name", STATES_BY_HAND)
def test_the_states_of_a_hybrid_are_those_derived_by_hand_and_do_not_grow(name):
    described = describe(CONFIGS[name])
    found = [cache.nbytes(described, TOKENS, 1, F16, engine).states for engine in ("llama.cpp", "transformers")]
    assert found == list(STATES_BY_HAND[name])
    assert cache.nbytes(described, 2 * TOKENS, 3, F16, "llama.cpp").states == 3 * STATES_BY_HAND[name][0]


def test_a_multimodal_config_is_read_for_its_text_model_and_says_so():
    assert describe(CONFIGS["Gemma 3 4B"]).assumed == (TEXT_ONLY,)
    assert not describe(CONFIGS["Gemma 3 1B"]).assumed

"""The tensors derived from a config are those of transformers' own classes, built small and without weights."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.fit.layout import describe

SMALL = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0},
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_expand": 2}
DELTA = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"head_dim": 16, "layer_types": ["linear_attention"] * 3 + ["full_attention"]},
}
LATENT = {
    **{"kv_lora_rank": 24, "q_lora_rank": 40, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12},
    **{"num_key_value_heads": 4, "head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    **{"n_routed_experts": 4, "n_shared_experts": 2, **MOE},
}
WINDOWS = {"sliding_window": 16}

_OWN_NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
NOT_OF = {  # what these families' configs do not have
    **dict.fromkeys(("gpt2", "gptj", "gpt_bigcode"), _OWN_NAMES),
    **{"falcon": ("intermediate_size", "num_key_value_heads"), "nemotron_h": ("num_hidden_layers",)},
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama, tied, with biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "Llama with heads wider than hidden / heads": ("llama", {"head_dim": 32}),
    "Mistral": ("mistral", WINDOWS),
    "Ministral 3": ("ministral3", {}),
    "Mixtral": ("mixtral", {"num_local_experts": 4}),
    "Qwen 2": ("qwen2", {}),
    "Qwen 2 MoE": ("qwen2_moe", {"num_experts": 4, **MOE, "shared_expert_intermediate_size": 40}),
    "Qwen 2 MoE, every second layer dense": (
        "qwen2_moe",
        {"num_experts": 4, **MOE, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
    ),
    "Qwen 3": ("qwen3", {"head_dim": 32}),
    "Qwen 3 MoE": ("qwen3_moe", {"num_experts": 4, **MOE, "head_dim": 32}),
    "Qwen 3 MoE with dense layers": ("qwen3_moe", {"num_experts": 4, **MOE, "mlp_only_layers": [0, 2]}),
    "Qwen 3 Next": ("qwen3_next", {"num_experts": 4, **MOE, "shared_expert_intermediate_size": 40, **DELTA}),
    "Qwen 3.5": ("qwen3_5_text", DELTA),
    "Qwen 3.5 MoE": (
        "qwen3_5_moe_text",
        {"num_experts": 4, **MOE, "shared_expert_intermediate_size": 40, **DELTA},
    ),
    "Gemma": ("gemma", {"head_dim": 32}),
    "Gemma 2": ("gemma2", {"head_dim": 32, **WINDOWS}),
    "Gemma 3": ("gemma3_text", {"head_dim": 32, **WINDOWS}),
    "Gemma 3n": (
        "gemma3n_text",
        {
            **{"num_hidden_layers": 10, "num_kv_shared_layers": 5, "head_dim": 16, "vocab_size_per_layer_input": 90},
            **{"hidden_size_per_layer_input": 8, "intermediate_size": [96] * 10, "laurel_rank": 12},
        },
    ),
    "Gemma 4 with shared keys": (
        "gemma4_text",
        {
            **{"num_hidden_layers": 12, "num_kv_shared_layers": 6, "head_dim": 16, "global_head_dim": 32},
            **{"vocab_size_per_layer_input": 90, "hidden_size_per_layer_input": 8, "use_double_wide_mlp": True},
        },
    ),
    "Gemma 4 with experts": (
        "gemma4_text",
        {
            **{"num_hidden_layers": 6, "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1},
            **{"attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "enable_moe_block": True},
            **{"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
        },
    ),
    "Phi": ("phi", {}),
    "Phi 3": ("phi3", WINDOWS),
    "Phi MoE": ("phimoe", {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}),
    "DeepSeek V2": ("deepseek_v2", LATENT),
    "DeepSeek V2 Lite, without a query latent": ("deepseek_v2", {**LATENT, "q_lora_rank": None}),
    "DeepSeek V3": ("deepseek_v3", LATENT),
    "DeepSeek V3.2": ("deepseek_v32", {**LATENT, "index_head_dim": 8, "index_n_heads": 2}),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, **WINDOWS}),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-2": ("gpt2", {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 50}),
    "GPT-J": ("gptj", {"n_embd": 64, "n_layer": 4, "n_head": 4, "rotary_dim": 8}),
    "GPT-BigCode": ("gpt_bigcode", {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 50}),
    "Falcon 7B": ("falcon", {"bias": False, "new_decoder_architecture": False}),
    "Falcon 40B": ("falcon", {"bias": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon RW": ("falcon", {"bias": True, "multi_query": False, "parallel_attn": False, "alibi": True}),
    "StarCoder 2": ("starcoder2", WINDOWS),
    "Nemotron": ("nemotron", {"head_dim": 16}),
    "Cohere with norms of each head": ("cohere", {"use_qk_norm": True}),
    "Cohere 2": ("cohere2", WINDOWS),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", WINDOWS),
    "OLMoE": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "StableLM": ("stablelm", {"use_qkv_bias": True}),
    "StableLM 12B": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "Granite": ("granite", {}),
    "Granite MoE": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Granite 4 hybrid": (
        "granitemoehybrid",
        {
            **{"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 40, **MAMBA2},
            **{"layer_types": ["mamba", "mamba", "attention", "mamba"]},
        },
    ),
    "Bamba": ("bamba", {**MAMBA2, "attn_layer_indices": [2]}),
    "Falcon H1": ("falcon_h1", {**MAMBA2, "mamba_d_ssm": 128, "head_dim": 16}),
    "Falcon H1 with a norm in its state": (
        "falcon_h1",
        {**MAMBA2, "mamba_d_ssm": 128, "head_dim": 16, "mamba_rms_norm": True},
    ),
    "Nemotron H": (
        "nemotron_h",
        {
            **{"hybrid_override_pattern": "M-*E", "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2},
            **{"ssm_state_size": 16, "head_dim": 16, "n_routed_experts": 4, **MOE, "n_group": 1, "topk_group": 1},
            **{"moe_shared_expert_intermediate_size": 40, "n_shared_experts": 1},
        },
    ),
    "Jamba": ("jamba", {"num_hidden_layers": 8, "num_experts": 4}),
    "Mamba": ("mamba", {"intermediate_size": 128}),
    "Falcon Mamba": ("falcon_mamba", {"intermediate_size": 128}),
    "Mamba 2": (
        "mamba2",
        {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "expand": 2, "intermediate_size": 128},
    ),
    "LFM 2": ("lfm2", {"layer_types": ["conv", "conv", "full_attention", "conv"]}),
    "LFM 2 MoE": (
        "lfm2_moe",
        {
            **{"layer_types": ["conv", "conv", "full_attention", "conv"], "num_experts": 4, **MOE},
            **{"num_dense_layers": 2},
        },
    ),
    "GLM 4 9B": ("glm", {"head_dim": 16}),
    "GLM 4 0414": ("glm4", {"head_dim": 16}),
    "GLM 4.5": (
        "glm4_moe",
        {"n_routed_experts": 4, **MOE, "n_shared_experts": 1, "first_k_dense_replace": 1, "use_qk_norm": True},
    ),
    "SmolLM 3": ("smollm3", {}),
    "Seed OSS": ("seed_oss", {"head_dim": 16}),
    "EXAONE 4": ("exaone4", {**WINDOWS, "sliding_window_pattern": 4}),
    "ERNIE 4.5": ("ernie4_5", {}),
    "ERNIE 4.5 MoE": (
        "ernie4_5_moe",
        {
            **{"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 2},
            **{"moe_layer_start_index": 1},
        },
    ),
    "Hunyuan": ("hunyuan_v1_dense", {"head_dim": 16}),
    "MiniMax M2": ("minimax_m2", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
    "Llama 4": (
        "llama4_text",
        {
            **{"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 16, "intermediate_size_mlp": 72},
            **{"interleave_moe_layer_step": 2},
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_number_of_parameters_is_that_of_transformers_own_class(name):
    kind, changes = CASES[name]
    values = {**SMALL, **changes}
    for name in NOT_OF.get(kind, ()):
        del values[name]
    layers = {"num_hidden_layers": 4} if kind == "nemotron_h" else {}
    described = describe({**layers, **values, "model_type": kind})
    assert not described.assumed
    assert sum(described.params.values()) == parameters(kind, values)


def parameters(kind: str, values: dict[str, Any]) -> int:
    """Of transformers' class, tied weights once, and without the buffers that are no weights."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        logging.getLogger("transformers").setLevel(logging.ERROR)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    return sum(parameter.numel() for parameter in model.parameters())

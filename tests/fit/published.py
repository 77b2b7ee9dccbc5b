"""Configs of published models, written from their public config.json files: the keys that decide memory."""

from __future__ import annotations

from typing import Any

BF16 = {"torch_dtype": "bfloat16"}

CONFIGS: dict[str, dict[str, Any]] = {
    "Llama 2 7B": {
        **{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False},
        **{"max_position_embeddings": 4096, "torch_dtype": "float16"},
    },
    "Llama 3.1 8B": {
        **{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
        **{"max_position_embeddings": 131072, "attention_bias": False, "mlp_bias": False, **BF16},
    },
    "Llama 3.2 1B": {
        **{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256},
        **{"tie_word_embeddings": True, "max_position_embeddings": 131072, **BF16},
    },
    "Mistral 7B v0.1": {
        **{"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096},
        **{"tie_word_embeddings": False, "max_position_embeddings": 32768, **BF16},
    },
    "Mixtral 8x7B": {
        **{"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": None},
        **{"num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False},
        **{"max_position_embeddings": 32768, **BF16},
    },
    "Qwen2.5 7B": {
        **{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28},
        **{"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "use_sliding_window": False},
        **{"sliding_window": 131072, "max_window_layers": 28, "tie_word_embeddings": False},
        **{"max_position_embeddings": 131072, **BF16},
    },
    "Qwen3 8B": {
        **{"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936},
        **{"attention_bias": False, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 36},
        **{"tie_word_embeddings": False, "max_position_embeddings": 40960, **BF16},
    },
    "Qwen3 30B A3B": {
        **{"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48},
        **{"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936},
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1},
        **{"mlp_only_layers": [], "use_sliding_window": False, "sliding_window": None, "tie_word_embeddings": False},
        **{"max_position_embeddings": 40960, **BF16},
    },
    "Qwen3 Next 80B A3B": {
        **{"model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 48},
        **{"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936},
        **{"num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512, "decoder_sparse_step": 1},
        **{"shared_expert_intermediate_size": 512, "full_attention_interval": 4, "linear_conv_kernel_dim": 4},
        **{"linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32},
        **{"linear_value_head_dim": 128, "mlp_only_layers": [], "tie_word_embeddings": False},
        **{"max_position_embeddings": 262144, **BF16},
    },
    "Gemma 2 9B": {
        **{"model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000},
        **{"sliding_window": 4096, "max_position_embeddings": 8192, **BF16},
    },
    "Gemma 3 1B": {
        **{"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26},
        **{"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144},
        **{"sliding_window": 512, "sliding_window_pattern": 6, "max_position_embeddings": 32768, **BF16},
    },
    "Gemma 3 4B": {  # its config.json leaves heads, width of a head and vocabulary to transformers' defaults
        **{"model_type": "gemma3", "vision_config": {"model_type": "siglip_vision_model"}, **BF16},
        "text_config": {
            **{"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240},
            **{"num_hidden_layers": 34, "sliding_window": 1024},
        },
    },
    "Gemma 3n E4B": {
        **{"model_type": "gemma3n_text", "hidden_size": 2048, "intermediate_size": [16384] * 35},
        **{"num_hidden_layers": 35, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256},
        **{"num_kv_shared_layers": 15, "sliding_window": 512, "vocab_size": 262400},
        **{"vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256, "laurel_rank": 64},
        **{"layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7, "altup_num_inputs": 4},
        **{"max_position_embeddings": 32768, **BF16},
    },
    "Phi 2": {
        **{"model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 51200, "tie_word_embeddings": False},
        **{"max_position_embeddings": 2048, "torch_dtype": "float16"},
    },
    "Phi 3 mini": {
        **{"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "sliding_window": 2047},
        **{"tie_word_embeddings": False, "max_position_embeddings": 4096, **BF16},
    },
    "Phi 4": {
        **{"model_type": "phi3", "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40},
        **{"num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 100352, "sliding_window": None},
        **{"tie_word_embeddings": False, "max_position_embeddings": 16384, **BF16},
    },
    "DeepSeek V2 Lite": {
        **{"model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27},
        **{"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400, "q_lora_rank": None},
        **{"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
        **{"n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "moe_intermediate_size": 1408},
        **{"first_k_dense_replace": 1, "moe_layer_freq": 1, "tie_word_embeddings": False, "attention_bias": False},
        **{"max_position_embeddings": 163840, **BF16},
    },
    "DeepSeek V3": {
        **{"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61},
        **{"num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280, "q_lora_rank": 1536},
        **{"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
        **{"n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048},
        **{"first_k_dense_replace": 3, "moe_layer_freq": 1, "tie_word_embeddings": False, "attention_bias": False},
        **{"max_position_embeddings": 163840, **BF16, "quantization_config": {"quant_method": "fp8"}},
    },
    "gpt-oss 20B": {
        **{"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24},
        **{"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088},
        **{"num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "attention_bias": True},
        **{"layer_types": ["sliding_attention", "full_attention"] * 12, "tie_word_embeddings": False},
        **{"max_position_embeddings": 131072, "quantization_config": {"quant_method": "mxfp4"}, **BF16},
    },
    "Jamba v0.1": {
        **{"model_type": "jamba", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536, "tie_word_embeddings": False},
        **{"attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"num_experts": 16, "num_experts_per_tok": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2},
        **{"mamba_dt_rank": 256, "mamba_conv_bias": True, "mamba_proj_bias": False},
        **{"max_position_embeddings": 262144, **BF16},
    },
    "Falcon H1 1.5B": {
        **{"model_type": "falcon_h1", "hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 24},
        **{"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 65537},
        **{"mamba_d_ssm": 3072, "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 256, "mamba_n_groups": 1},
        **{"mamba_d_conv": 4, "mamba_rms_norm": False, "tie_word_embeddings": False},
        **{"max_position_embeddings": 131072, **BF16},
    },
    "Mamba 130M": {
        **{"model_type": "mamba", "hidden_size": 768, "intermediate_size": 1536, "num_hidden_layers": 24},
        **{"state_size": 16, "conv_kernel": 4, "expand": 2, "time_step_rank": 48, "use_bias": False},
        **{"use_conv_bias": True, "vocab_size": 50280, "torch_dtype": "float32"},
    },
    "GPT-NeoX 20B": {
        **{"model_type": "gpt_neox", "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44},
        **{"num_attention_heads": 64, "vocab_size": 50432, "tie_word_embeddings": False},
        **{"max_position_embeddings": 2048, "torch_dtype": "float16"},
    },
    "Pythia 1.4B": {
        **{"model_type": "gpt_neox", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24},
        **{"num_attention_heads": 16, "vocab_size": 50304, "tie_word_embeddings": False},
        **{"max_position_embeddings": 2048, "torch_dtype": "float16"},
    },
    "GPT-2": {
        **{"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_ctx": 1024},
        **{"vocab_size": 50257},
    },
    "Falcon 7B": {
        **{"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71},
        **{"vocab_size": 65024, "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False},
        **{"bias": False, "alibi": False, **BF16},
    },
    "Command R": {
        **{"model_type": "cohere", "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40},
        **{"num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 256000, "use_qk_norm": False},
        **{"max_position_embeddings": 8192, "torch_dtype": "float16"},
    },
    "StarCoder 2 3B": {
        **{"model_type": "starcoder2", "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30},
        **{"num_attention_heads": 24, "num_key_value_heads": 2, "vocab_size": 49152, "use_bias": True},
        **{"sliding_window": 4096, "max_position_embeddings": 16384, "torch_dtype": "float32"},
    },
}

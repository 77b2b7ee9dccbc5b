"""How each model family departs from a Llama.

The layouts are those of transformers 5 (src/transformers/models/<model_type>); the tests
hold the number of parameters against its classes, built without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Flag = bool | str  # a fixed answer, or the key of the config that gives it


@dataclass(frozen=True)
class Family:
    """The traits of a model type; the defaults are a Llama's.

    Attributes:
        window: which layers see a sliding window where the config has no `layer_types`: "" none,
            "all" if the config sets one, "upper" those from `max_window_layers` on if
            `use_sliding_window`, or a number n: all but each n-th.
        qk_norm: norms of queries and keys: "head" one of a head's width, "width" one of all
            heads' width, "each" one for each head.
        tied: whether head and embedding are one where the config does not say.
        mixer: what stands in place of attention in some layers.
        defaults: what transformers takes for keys that published configs leave out.
    """

    window: str | int = ""
    window_key: str = "sliding_window"
    qkv_bias: Flag = "attention_bias"
    o_bias: Flag = "attention_bias"
    mlp_bias: Flag = "mlp_bias"
    qk_norm: str = ""
    qk_norm_flag: Flag = True
    fused_qkv: bool = False
    fused_up: bool = False
    gated: bool = True
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norm_bias: bool = False
    query_gate: bool = False
    sinks: bool = False
    expert_bias: bool = False
    shared_gate: bool = False
    head_bias: Flag = False
    tied: bool = False
    positions: bool = False
    mixer: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)


_FOUR_NORMS = (
    *("input_layernorm", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_GEMMA = {"head_dim": 256, "vocab_size": 262144, "sliding_window": 512}

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(window="all", defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "ministral": Family(window="all", defaults={"sliding_window": 4096}),
    "ministral3": Family(window="all", defaults={"head_dim": 128}),
    "mixtral": Family(window="all", defaults={"num_key_value_heads": 8}),
    "qwen2": Family(window="upper", qkv_bias=True, o_bias=False),
    "qwen2_moe": Family(window="upper", qkv_bias=True, o_bias=False, shared_gate=True),
    "qwen3": Family(window="upper", qk_norm="head", defaults={"head_dim": 128}),
    "qwen3_moe": Family(window="upper", qk_norm="head"),
    "qwen3_next": Family(qk_norm="head", query_gate=True, shared_gate=True, mixer="delta"),
    "qwen3_5": Family(qk_norm="head", query_gate=True, mixer="delta"),
    "qwen3_5_moe": Family(qk_norm="head", query_gate=True, shared_gate=True, mixer="delta"),
    "gemma": Family(tied=True, defaults={"head_dim": 256}),
    "gemma2": Family(window=2, norms=_FOUR_NORMS, tied=True, defaults={"head_dim": 256, "sliding_window": 4096}),
    "gemma3": Family(
        window=6,
        norms=_FOUR_NORMS,
        qk_norm="head",
        tied=True,
        # google/gemma-3-4b-it leaves all of these out of its config.json
        defaults={
            **{"head_dim": 256, "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4},
            **{"sliding_window": 4096},
        },
    ),
    "gemma3n": Family(
        window=5,
        norms=_FOUR_NORMS,
        qk_norm="head",
        tied=True,
        defaults={**_GEMMA, "num_kv_shared_layers": 15, "hidden_size_per_layer_input": 256, "altup_num_inputs": 4},
    ),
    "gemma4": Family(
        window=6,
        norms=_FOUR_NORMS,
        qk_norm="head",
        tied=True,
        defaults={**_GEMMA, "global_head_dim": 512, "hidden_size_per_layer_input": 256},
    ),
    "phi": Family(
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        gated=False,
        norms=("input_layernorm",),
        norm_bias=True,
        head_bias=True,
    ),
    "phi3": Family(window="all", fused_qkv=True, fused_up=True, qkv_bias=False, o_bias=False),
    "phimoe": Family(window="all", norm_bias=True, head_bias="lm_head_bias"),
    "deepseek_v2": Family(o_bias="attention_bias"),
    "deepseek_v3": Family(defaults={"n_shared_experts": 1}),
    "deepseek_v32": Family(defaults={"n_shared_experts": 1}),
    "gpt_oss": Family(
        window=2,
        qkv_bias=True,
        o_bias=True,
        sinks=True,
        expert_bias=True,
        defaults={"head_dim": 64, "sliding_window": 128},
    ),
    "gpt_neox": Family(
        fused_qkv=True,
        qkv_bias="attention_bias",
        mlp_bias=True,
        gated=False,
        norm_bias=True,
        defaults={"attention_bias": True},
    ),
    "gpt2": Family(
        fused_qkv=True,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        gated=False,
        norm_bias=True,
        tied=True,
        positions=True,
    ),
    "gptj": Family(mlp_bias=True, gated=False, norms=("ln_1",), norm_bias=True, head_bias=True),
    "gpt_bigcode": Family(
        fused_qkv=True,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        gated=False,
        norm_bias=True,
        tied=True,
        positions=True,
        defaults={"multi_query": True},
    ),
    "falcon": Family(
        fused_qkv=True,
        qkv_bias="bias",
        o_bias="bias",
        mlp_bias="bias",
        gated=False,
        norm_bias=True,
        tied=True,
        defaults={"multi_query": True, "parallel_attn": True},
    ),
    "starcoder2": Family(
        window="all",
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        gated=False,
        norm_bias=True,
        tied=True,
        defaults={"use_bias": True},
    ),
    "nemotron": Family(gated=False, norm_bias=True),
    "cohere": Family(norms=("input_layernorm",), qk_norm="each", qk_norm_flag="use_qk_norm", tied=True),
    "cohere2": Family(window=4, norms=("input_layernorm",), tied=True, defaults={"sliding_window": 4096}),
    "olmo": Family(norms=()),
    "olmo2": Family(norms=_POST_NORMS, qk_norm="width"),
    "olmo3": Family(window=4, norms=_POST_NORMS, qk_norm="width", defaults={"sliding_window": 4096}),
    "olmoe": Family(qk_norm="width"),
    "stablelm": Family(
        qkv_bias="use_qkv_bias", o_bias=False, qk_norm="each", qk_norm_flag="qk_layernorm", norm_bias=True
    ),
    "granite": Family(),
    "granitemoe": Family(),
    "granitemoehybrid": Family(mixer="mamba2"),
    "bamba": Family(mixer="mamba2"),
    "falcon_h1": Family(mixer="both"),
    "nemotron_h": Family(gated=False, norms=("norm",), mixer="mamba2"),
    "jamba": Family(mixer="mamba", defaults={"num_experts": 16, "num_experts_per_tok": 2}),
    "mamba": Family(norms=("norm",), tied=True, mixer="mamba"),
    "falcon_mamba": Family(norms=("norm",), tied=True, mixer="mamba"),
    "mamba2": Family(norms=("norm",), mixer="mamba2"),
    "lfm2": Family(qk_norm="head", tied=True, mixer="conv"),
    "lfm2_moe": Family(qk_norm="head", tied=True, mixer="conv"),
    "glm": Family(fused_up=True, o_bias=False, defaults={"attention_bias": True, "head_dim": 128}),
    "glm4": Family(fused_up=True, o_bias=False, norms=_FOUR_NORMS, defaults={"attention_bias": True, "head_dim": 128}),
    "glm4_moe": Family(o_bias=False, qk_norm="head", qk_norm_flag="use_qk_norm"),
    "smollm3": Family(window="upper", tied=True),
    "seed_oss": Family(o_bias="attention_out_bias", defaults={"attention_bias": True, "head_dim": 128}),
    "exaone4": Family(window=4, norms=_POST_NORMS, qk_norm="head", defaults={"sliding_window": 4096}),
    "ernie4_5": Family(
        qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True, defaults={"head_dim": 128}
    ),
    "ernie4_5_moe": Family(qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True),
    "hunyuan_v1_dense": Family(qk_norm="head"),
    "minimax_m2": Family(qk_norm="width", defaults={"head_dim": 128}),
    "llama4": Family(
        window=4,
        window_key="attention_chunk_size",
        defaults={"head_dim": 128, "num_local_experts": 16, "attention_chunk_size": 8192},
    ),
}
ALIASES = {
    **{f"{name}_text": name for name in ("gemma3", "gemma3n", "gemma4", "llama4", "qwen3_5", "qwen3_5_moe")},
    **{"kimi_k2": "deepseek_v3", "glm_moe_dsa": "deepseek_v32"},
}

# llama.cpp's architectures with a sliding window: each n-th layer sees everything. It keeps all tokens for
# every other architecture, Mistral and Phi 3 among them (set_swa_pattern, in its src/models).
LLAMA_CPP_PERIODS = {
    **{"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gemma4": 6, "cohere2": 4, "gpt-oss": 2},
    **{"llama4": 4, "olmo2": 4, "exaone4": 4, "smallthinker": 4, "afmoe": 4},
}
# The same by config.json's model type.
LLAMA_CPP_WINDOWS = ("gemma2", "gemma3", "gemma3n", "gemma4", "cohere2", "gpt_oss", "llama4", "olmo3", "exaone4")

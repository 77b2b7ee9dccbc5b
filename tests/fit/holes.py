"""GGUF files of published models whose tensors are holes: headers as the converter writes them, and no weights.

llama.cpp plans a model from such a file as from the real one (see `llama_cpp.report(dry=True)`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from workbench.fit.architecture import Architecture
from workbench.fit.layout import describe

ARCHITECTURES = {
    # model type -> llama.cpp's name
    **{"mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe", "qwen3_next": "qwen3next"},
    **{"gemma3_text": "gemma3", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "gpt_oss": "gpt-oss"},
    **{"falcon_h1": "falcon-h1", "gpt_neox": "gptneox"},
}
OUTSIDE = {
    **{"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"},
    "model.embed_positions": "position_embd",
}
INSIDE = {
    **{"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"},
    **{"self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv", "self_attn.sinks": "attn_sinks"},
    **{"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
    **{"self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b"},
    **{"self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm"},
    **{"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp"},
    **{"mlp.gate_up_proj": "ffn_up", "mlp.shared_expert_gate": "ffn_gate_inp_shexp"},
    **{f"mlp.experts.{part}_proj": f"ffn_{part}_exps" for part in ("gate", "up", "down")},
    **{f"mlp.experts.{part}_proj_bias": f"ffn_{part}_exps.bias" for part in ("gate", "up", "down")},
    **{f"mlp.shared_experts.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
    **{"linear_attn.in_proj_qkvz": "ssm_in", "linear_attn.in_proj_ba": "ssm_ba", "linear_attn.conv1d": "ssm_conv1d"},
    **{"linear_attn.dt_bias": "ssm_dt.bias", "linear_attn.A_log": "ssm_a", "linear_attn.norm": "ssm_norm"},
    **{"linear_attn.out_proj": "ssm_out", "mamba.in_proj": "ssm_in", "mamba.conv1d": "ssm_conv1d"},
    **{"mamba.dt_bias": "ssm_dt.bias", "mamba.A_log": "ssm_a", "mamba.D": "ssm_d", "mamba.out_proj": "ssm_out"},
    **{f"mamba.mixer.{part}_proj": f"ssm_{part}" for part in ("in", "x", "dt", "out")},
    **{"mamba.mixer.conv1d": "ssm_conv1d", "mamba.mixer.A_log": "ssm_a", "mamba.mixer.D": "ssm_d"},
    **{"input_layernorm": "attn_norm", "norm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
}
AFTER_ATTENTION = {"post_attention_layernorm": "post_attention_norm"}
RENAMED = {
    "gemma": AFTER_ATTENTION | {"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"},
    **{"gpt-oss": AFTER_ATTENTION, "qwen3next": AFTER_ATTENTION},
}
IN_FLOAT32 = re.compile(r"norm|bias|ffn_gate_inp|ssm_(?:conv1d|a|d)|sinks")


def write(path: Path, config: Mapping[str, Any], kind: str = "Q4_0") -> Architecture:
    """Write the model of `config` to `path` with its matrices in the ggml type `kind`; returns its architecture."""
    described = describe(config)
    name = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, name)
    _add_vocabulary(writer, described.vocabulary)
    for key, value in _metadata(name, config, described).items():
        full = f"{name}.{key}"
        if isinstance(value, list):
            writer.add_array(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_uint32(full, value)
    total = 0
    for tensor, shape in _tensors(name, config, described).items():
        total += -(-_add_tensor(writer, tensor, shape, kind) // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + total)
    return described


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{number}>" for number in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([3] * 3 + [6] * 256 + [1] * (size - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _add_tensor(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: str) -> int:
    """Announce a tensor, without values; returns its bytes."""
    if len(shape) == 1 or IN_FLOAT32.search(name):
        writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
        return 4 * math.prod(shape)
    raw = gguf.GGMLQuantizationType[kind]
    block, nbytes = gguf.GGML_QUANT_SIZES[raw]
    size = math.prod(shape) // block * nbytes
    stored = (*shape[:-1], shape[-1] // block * nbytes)
    writer.add_tensor_info(name, stored, np.dtype(np.uint8), size, raw_dtype=raw)
    return size


def _tensors(name: str, config: Mapping[str, Any], described: Architecture) -> dict[str, tuple[int, ...]]:
    renamed = {**INSIDE, **RENAMED.get("gemma" if name.startswith("gemma") else name, {})}
    found: dict[str, tuple[int, ...]] = {}
    for tensor, shape in described.tensors.items():
        layer = re.match(r"model\.layers\.(\d+)\.(.+)", tensor)
        own = layer[2] if layer else tensor
        base, ending = (own, "") if own in renamed else own.rsplit(".", 1)
        if base == "self_attn.kv_b_proj":
            continue
        there = (renamed if layer else OUTSIDE)[base]
        vector = there in ("ssm_a", "ssm_d") or "." in there
        if not vector:
            there += f".{ending or 'weight'}"
        if name == "falcon-h1" and there == "ffn_norm.weight":
            there = "ffn_norm"  # as llama.cpp asks for it
        if len(shape) == 3 and "exps" not in there:
            shape = (shape[0], shape[2])  # a convolution's channels and kernel
        if name == "falcon-h1" and there in ("ssm_a", "ssm_d"):
            shape = (shape[0], 1)
        found[f"blk.{layer[1]}.{there}" if layer else there] = shape
    if name == "deepseek2":  # the matrix from the latent, taken apart for each head
        heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
        for layer in range(len(described.layers)):
            found[f"blk.{layer}.attn_k_b.weight"] = (heads, rank, config["qk_nope_head_dim"])
            found[f"blk.{layer}.attn_v_b.weight"] = (heads, config["v_head_dim"], rank)
    return found


def _metadata(name: str, config: Mapping[str, Any], described: Architecture) -> dict[str, Any]:
    layers = len(described.layers)
    found: dict[str, Any] = {
        **{"context_length": described.context or 2048, "embedding_length": described.hidden, "block_count": layers},
        **{"feed_forward_length": described.feed_forward or described.expert_width},
        **{"attention.head_count": described.heads, "attention.layer_norm_rms_epsilon": 1e-5},
        "attention.layer_norm_epsilon": 1e-5,
    }
    if described.heads and name != "deepseek2":
        kept = config.get("num_key_value_heads", described.heads)
        found |= {
            **{"attention.head_count_kv": kept, "attention.key_length": described.head},
            **{"attention.value_length": described.head, "rope.dimension_count": described.head},
        }
    if described.experts:
        found |= {
            **{"expert_count": described.experts, "expert_used_count": described.experts_used},
            **{"expert_feed_forward_length": described.expert_width, "expert_weights_scale": 1.0},
        }
    windows = [layer.window for layer in described.layers if layer.window]
    if windows:
        found["attention.sliding_window"] = windows[0]
    return found | _OWN.get(name, lambda _: {})(config)


def _deepseek(config: Mapping[str, Any]) -> dict[str, Any]:
    rope, rank = config["qk_rope_head_dim"], config["kv_lora_rank"]
    return {
        **{"attention.head_count_kv": 1, "attention.key_length": rank + rope, "attention.value_length": rank},
        **{"attention.key_length_mla": config["qk_nope_head_dim"] + rope, "rope.dimension_count": rope},
        **{"attention.value_length_mla": config["v_head_dim"], "attention.kv_lora_rank": rank},
        **{"attention.q_lora_rank": config["q_lora_rank"] or 0, "expert_shared_count": config["n_shared_experts"]},
        "leading_dense_block_count": config["first_k_dense_replace"],
    }


def _falcon_h1(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{"ssm.conv_kernel": config["mamba_d_conv"], "ssm.inner_size": config["mamba_d_ssm"]},
        **{"ssm.state_size": config["mamba_d_state"], "ssm.time_step_rank": config["mamba_n_heads"]},
        "ssm.group_count": config["mamba_n_groups"],
    }


def _qwen3_next(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config["linear_num_value_heads"]
    return {
        **{"ssm.conv_kernel": config["linear_conv_kernel_dim"], "ssm.state_size": config["linear_key_head_dim"]},
        **{"ssm.inner_size": heads * config["linear_value_head_dim"], "ssm.time_step_rank": heads},
        "ssm.group_count": config["linear_num_key_heads"],
        "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
    }


def _mamba(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{"ssm.conv_kernel": config["conv_kernel"], "ssm.inner_size": config["intermediate_size"]},
        **{"ssm.state_size": config["state_size"], "ssm.time_step_rank": config["time_step_rank"]},
        "feed_forward_length": 0,
    }


def _gemma2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


_OWN = {
    **{"deepseek2": _deepseek, "falcon-h1": _falcon_h1, "qwen3next": _qwen3_next, "mamba": _mamba, "gemma2": _gemma2},
    "cohere2": lambda config: {"logit_scale": 1.0},
    "gptneox": lambda config: {"use_parallel_residual": True},
}

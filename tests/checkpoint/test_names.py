"""Names: every family's own words for a layer's parts come to the same roles."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.checkpoint import TensorInfo, names

ROLES = {
    # Llama, Mistral, Qwen, Gemma (safetensors)
    "model.embed_tokens.weight": (None, "embed_tokens"),
    "model.layers.7.self_attn.q_proj.weight": (7, "q_proj"),
    "model.layers.7.self_attn.k_proj.bias": (7, "k_proj"),
    "model.layers.31.mlp.gate_proj.weight": (31, "gate_proj"),
    "model.layers.7.self_attn.q_norm.weight": (7, "q_norm"),
    "model.language_model.layers.2.mlp.down_proj.weight": (2, "down_proj"),
    "model.norm.weight": (None, "norm"),
    "lm_head.weight": (None, "lm_head"),
    # Phi
    "model.layers.0.self_attn.qkv_proj.weight": (0, "qkv_proj"),
    "model.layers.0.mlp.gate_up_proj.weight": (0, "gate_up_proj"),
    "model.layers.0.self_attn.dense.weight": (0, "o_proj"),
    "model.layers.0.mlp.fc1.weight": (0, "up_proj"),
    "model.layers.0.mlp.fc2.weight": (0, "down_proj"),
    # GPT-NeoX, Falcon, BLOOM, GPT-2
    "gpt_neox.embed_in.weight": (None, "embed_tokens"),
    "gpt_neox.layers.5.attention.query_key_value.weight": (5, "qkv_proj"),
    "gpt_neox.layers.5.attention.dense.weight": (5, "o_proj"),
    "gpt_neox.layers.5.mlp.dense_h_to_4h.weight": (5, "up_proj"),
    "gpt_neox.layers.5.mlp.dense_4h_to_h.weight": (5, "down_proj"),
    "embed_out.weight": (None, "lm_head"),
    "transformer.h.3.self_attention.dense.weight": (3, "o_proj"),
    "transformer.word_embeddings.weight": (None, "embed_tokens"),
    "transformer.h.3.attn.c_attn.weight": (3, "qkv_proj"),
    "transformer.h.3.attn.c_proj.weight": (3, "o_proj"),
    "transformer.h.3.mlp.c_proj.weight": (3, "down_proj"),
    # Mixture of experts: Mixtral, Qwen, DeepSeek, stacked
    "model.layers.1.block_sparse_moe.gate.weight": (1, "router"),
    "model.layers.1.block_sparse_moe.experts.7.w1.weight": (1, "gate_proj"),
    "model.layers.1.block_sparse_moe.experts.7.w2.weight": (1, "down_proj"),
    "model.layers.1.block_sparse_moe.experts.7.w3.weight": (1, "up_proj"),
    "model.layers.1.mlp.gate.weight": (1, "router"),
    "model.layers.1.mlp.experts.127.down_proj.weight": (1, "down_proj"),
    "model.layers.1.mlp.shared_expert.up_proj.weight": (1, "up_proj"),
    "model.layers.1.mlp.shared_expert_gate.weight": (1, "router"),
    "model.layers.1.mlp.experts.gate_up_proj": (1, "gate_up_proj"),
    "model.layers.1.self_attn.kv_b_proj.weight": (1, "kv_b_proj"),
    # GGUF
    "token_embd.weight": (None, "embed_tokens"),
    "blk.12.attn_q.weight": (12, "q_proj"),
    "blk.12.attn_qkv.weight": (12, "qkv_proj"),
    "blk.12.attn_output.weight": (12, "o_proj"),
    "blk.12.ffn_down.weight": (12, "down_proj"),
    "blk.12.ffn_gate_exps.weight": (12, "gate_proj"),
    "blk.12.ffn_up_shexp.weight": (12, "up_proj"),
    "blk.12.ffn_gate_inp.weight": (12, "router"),
    "blk.12.attn_norm.weight": (12, "attn_norm"),
    "output.weight": (None, "lm_head"),
    "output_norm.weight": (None, "output_norm"),
    # not the language model
    "vision_tower.encoder.layers.3.self_attn.q_proj.weight": (None, "q_proj"),
    "model.visual.blocks.3.mlp.fc1.weight": (None, "up_proj"),
    "v.blk.3.attn_q.weight": (None, "q_proj"),
}


@pytest.mark.parametrize("name", ROLES)
def test_a_name_tells_layer_and_role(name: str) -> None:
    assert names.place(name) == ROLES[name]


def test_phi3_in_gguf_keeps_gate_and_up_in_ffn_up() -> None:
    assert names.place("blk.0.ffn_up.weight", "phi3") == (0, "gate_up_proj")
    assert names.place("blk.0.ffn_up.weight", "llama") == (0, "up_proj")


MATRICES = {
    "model.layers.0.mlp.up_proj.weight": True,
    "model.layers.0.mlp.experts.3.up_proj.weight": True,
    "model.layers.0.mlp.experts.gate_up_proj": True,
    "blk.0.ffn_up_exps.weight": True,
    "model.embed_tokens.weight": True,
    "output.weight": True,
    "model.layers.0.mlp.gate.weight": False,
    "blk.0.ffn_gate_inp.weight": False,
    "blk.0.ssm_conv1d.weight": False,
    "model.layers.0.mlp.experts.gate_up_proj_bias": False,
    "blk.0.ffn_up_exps.bias": False,
    "model.layers.0.input_layernorm.weight": False,
    "transformer.wpe.weight": False,
    "position_embd.weight": False,
    "vision_tower.encoder.layers.3.self_attn.q_proj.weight": False,
    "vision_tower.patch_embed.embed_tokens.weight": False,
    "score.weight": False,
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_is_what_quantizers_touch(name: str) -> None:
    shape = (4, 8, 8) if "_exps" in name or "experts.g" in name else (8, 8)
    info = TensorInfo(name, shape, "F32", 256, Path(), 0, *names.place(name))
    assert info.is_matrix == MATRICES[name]


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 8), (2, 4, 8), (8, 1, 4)], ids=str)
def test_other_shapes_are_no_matrices(shape: tuple[int, ...]) -> None:
    assert not TensorInfo("blk.0.ffn_up.weight", shape, "F32", 256, Path(), 0, 0, "up_proj").is_matrix


def test_the_star_stands_for_layer_and_expert() -> None:
    assert names.starred("model.layers.12.mlp.experts.12.w1.weight") == "model.layers.*.mlp.experts.*.w1.weight"
    assert names.starred("blk.1.attn_q1.weight") == "blk.*.attn_q1.weight"

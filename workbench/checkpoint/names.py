"""Where a tensor belongs: its layer, its canonical role, and transformers' name for a GGUF's tensor."""

from __future__ import annotations

import re

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blk|blocks|h)\.(\d{1,5})\.")
_EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.)")
_OTHER_TOWER = re.compile(r"(?:^|[._])(?:vision|visual|audio|speech|image|mm|mtp)[._]|^[va]\.")

# A module's last name, in the file's convention -> the role it plays in every model.
# "parent.name" is looked up before "name".
_ROLES = {
    **{"attn_q": "q_proj", "wq": "q_proj", "query": "q_proj"},
    **{"attn_k": "k_proj", "wk": "k_proj", "key": "k_proj"},
    **{"attn_v": "v_proj", "wv": "v_proj", "value": "v_proj"},
    **{
        "attn_qkv": "qkv_proj",
        "query_key_value": "qkv_proj",
        "c_attn": "qkv_proj",
        "Wqkv": "qkv_proj",
        "wqkv": "qkv_proj",
    },
    **{"attn_output": "o_proj", "wo": "o_proj", "attn.out_proj": "o_proj", "self_attn.out_proj": "o_proj"},
    **{
        "attn.c_proj": "o_proj",
        "self_attn.dense": "o_proj",
        "attention.dense": "o_proj",
        "self_attention.dense": "o_proj",
    },
    **{"ffn_gate": "gate_proj", "ffn_gate_exps": "gate_proj", "ffn_gate_shexp": "gate_proj", "w1": "gate_proj"},
    **{"ffn_up": "up_proj", "ffn_up_exps": "up_proj", "ffn_up_shexp": "up_proj", "w3": "up_proj"},
    **{"fc1": "up_proj", "c_fc": "up_proj", "dense_h_to_4h": "up_proj"},
    **{"ffn_down": "down_proj", "ffn_down_exps": "down_proj", "ffn_down_shexp": "down_proj", "w2": "down_proj"},
    **{"fc2": "down_proj", "mlp.c_proj": "down_proj", "dense_4h_to_h": "down_proj"},
    **{"ffn_gate_up_exps": "gate_up_proj"},
    **{"token_embd": "embed_tokens", "wte": "embed_tokens", "embed_in": "embed_tokens"},
    **{"word_embeddings": "embed_tokens", "tok_embeddings": "embed_tokens"},
    **{"embed_out": "lm_head"},
    **{"gate": "router", "router": "router", "router.layer": "router", "shared_expert_gate": "router"},
    **{"ffn_gate_inp": "router", "ffn_gate_inp_shexp": "router"},
}
# These architectures' GGUF files keep gate and up in one matrix and call it ffn_up.
_FUSED_UP = ("phi3", "chatglm", "glm4")

_NOT_MATRICES = re.compile(r"norm|router|conv1d|position|rel")


def starred(name: str) -> str:
    """`name` with * for the numbers of its layer and expert: the same for all tensors of a kind."""
    return _EXPERT.sub("*", _LAYER.sub(lambda found: found[0].replace(found[1], "*"), name, count=1))


def place(name: str, architecture: str = "") -> tuple[int | None, str]:
    """The layer (None: outside the layers, or of a vision or audio tower) and the canonical role of a tensor.

    The role is one of q_proj, k_proj, v_proj, qkv_proj, o_proj, gate_proj, up_proj,
    gate_up_proj, down_proj, embed_tokens, lm_head, router, or else the module's own last name.
    """
    found = None if _OTHER_TOWER.search(name) else _LAYER.search(name)
    layer = int(found[1]) if found else None
    parts = name.removesuffix(".weight").removesuffix(".bias").split(".")
    own = parts[-1]
    if layer is None and own == "output":
        return None, "lm_head"
    if own == "ffn_up" and architecture in _FUSED_UP:
        return layer, "gate_up_proj"
    return layer, _ROLES.get(".".join(parts[-2:]), _ROLES.get(own, own))


def holds_matrix(name: str, layer: int | None, role: str) -> bool:
    """Whether a tensor of two dimensions with this name holds weights that quantizers touch."""
    if layer is None:
        return role in ("embed_tokens", "lm_head") and not _OTHER_TOWER.search(name)
    fused = ".experts." in name and not name.endswith("bias")  # transformers' stacks of experts have no ".weight"
    return (name.endswith(".weight") or fused) and not _NOT_MATRICES.search(role)


_ORDER = (
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
    *("router", "gate_proj", "up_proj", "gate_up_proj", "down_proj"),
)


def rank(role: str) -> int:
    """Where a role comes within its layer: attention, then the MLP, then the rest."""
    return _ORDER.index(role) if role in _ORDER else len(_ORDER)

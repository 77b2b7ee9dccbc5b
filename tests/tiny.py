"""Tiny random Llamas for tests: real files, written by the libraries that write such files in the wild.

    weights = tiny.weights(hidden=256)          # transformers' names, float32, the same for the same arguments
    tiny.folder(tmp_path / "m", weights)        # config.json, tokenizer, model.safetensors (or shards)
    tiny.gguf(tmp_path / "m.gguf", weights)     # the same model by the `gguf` library, in any ggml type

Two layers, 64 wide heads (hidden/64 of them, two for keys and values), a byte-level BPE
tokenizer of 264 tokens with a ChatML template. About 1 MB in bfloat16 at hidden 256.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

HEAD_DIM = 64
KV_HEADS = 2
VOCAB = 264
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("Ġ", "t"), ("h", "e"), ("i", "n"), ("Ġ", "a"), ("Ġt", "he"))
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def weights(
    hidden: int = 256, layers: int = 2, *, tied: bool = True, intermediate: int | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """A Llama's parameters by transformers' names, float32 on bfloat16's grid (so that BF16 and F32 files agree)."""
    random = np.random.default_rng(seed)
    middle = intermediate or 2 * hidden
    kv = KV_HEADS * HEAD_DIM
    matrices: dict[str, tuple[int, int]] = {"model.embed_tokens.weight": (VOCAB, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        matrices |= {
            f"{at}.self_attn.q_proj.weight": (hidden, hidden),
            f"{at}.self_attn.k_proj.weight": (kv, hidden),
            f"{at}.self_attn.v_proj.weight": (kv, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.mlp.gate_proj.weight": (middle, hidden),
            f"{at}.mlp.up_proj.weight": (middle, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, middle),
        }
    if not tied:
        matrices["lm_head.weight"] = (VOCAB, hidden)
    made = {name: _on_grid(random.standard_normal(shape) / shape[1] ** 0.5) for name, shape in matrices.items()}
    norms = [f"model.layers.{layer}.{norm}.weight" for layer in range(layers) for norm in NORMS]
    return made | {name: _on_grid(1 + random.standard_normal(hidden) / 10) for name in [*norms, "model.norm.weight"]}


NORMS = ("input_layernorm", "post_attention_layernorm")


def _on_grid(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def llama_config(weights: Mapping[str, np.ndarray], dtype: str = "BF16") -> dict[str, Any]:
    """The config.json of a Llama with these weights."""
    hidden = weights["model.embed_tokens.weight"].shape[1]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": weights["model.layers.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": _layers(weights),
        "num_attention_heads": hidden // HEAD_DIM,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
    }


def _layers(weights: Mapping[str, np.ndarray]) -> int:
    return 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("model.layers."))


# --- a folder as transformers saves it -------------------------------------------------------


def folder(
    path: Path,
    weights: Mapping[str, np.ndarray],
    *,
    dtype: str = "BF16",
    shards: int = 1,
    tokenizer: bool = True,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.json, the tokenizer and `shards` safetensors files in `dtype` ("BF16", "F16", "F32")."""
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or llama_config(weights, dtype), indent=2))
    if tokenizer:
        write_tokenizer(path)
    stored = {name: values.astype(DTYPES[dtype]) for name, values in weights.items()}
    names = list(stored)
    if shards == 1:
        save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
        return path
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: stored[name] for name in names[number::shards]}
        save_file(part, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(values.nbytes for values in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def vocabulary() -> list[str]:
    """Every token, by number: the special ones, the 256 bytes as byte-level BPE spells them, the merged ones."""
    from tokenizers.pre_tokenizers import ByteLevel

    return [*SPECIAL, *sorted(ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]


def write_tokenizer(path: Path) -> None:
    """tokenizer.json and tokenizer_config.json of the tiny byte-level BPE tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    numbers = {token: number for number, token in enumerate(vocabulary())}
    made = Tokenizer(models.BPE(vocab=numbers, merges=list(MERGES)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


# --- a GGUF file as llama.cpp's converter writes it ------------------------------------------

GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name for a Llama parameter of transformers."""
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    _, _, layer, module = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[module.removesuffix('.weight')]}.weight"


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k: it rotates neighbours, transformers rotates halves."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def encode(values: np.ndarray, type_name: str) -> np.ndarray:
    """`values` [rows, cols] in a ggml type: float32/float16 values, else uint8 [rows, bytes of a row]."""
    if type_name in ("F32", "F16"):
        return values.astype(DTYPES[type_name])
    import libgguf
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[type_name]
    try:
        return quants.quantize(values, kind)
    except NotImplementedError:  # the gguf library encodes only the legacy types
        raw = libgguf.quantize_rows(
            np.ascontiguousarray(values, np.float32), kind, np.ones(values.shape[1], np.float32)
        )
        return np.frombuffer(raw, np.uint8).reshape(values.shape[0], -1)


def gguf(
    path: Path,
    weights: Mapping[str, np.ndarray],
    types: str | Mapping[str, str] = "Q8_0",
    *,
    tokenizer: bool = True,
    begins: bool | None = None,
    split: int = 0,
    others: Mapping[str, np.ndarray] | None = None,
    **metadata: str,
) -> Path:
    """Write the model as GGUF; `types` is one ggml type for the matrices, or one by llama.cpp's tensor name.

    Norms are F32. `split`: the most tensors in one file (the first file's path is returned).
    `begins`: whether the file says that a text begins with a token of its own.
    `others`: float32 tensors beside the parameters. `metadata`: more string fields, "__"
    standing for a dot (`general__license="mit"`).
    """
    import gguf as library

    described = llama_config(weights)
    heads = int(weights["model.embed_tokens.weight"].shape[1] // HEAD_DIM)
    writer = library.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_name("tiny")
    writer.add_context_length(512)
    writer.add_embedding_length(described["hidden_size"])
    writer.add_block_count(_layers(weights))
    writer.add_feed_forward_length(described["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    if tokenizer:
        tokens = vocabulary()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in MERGES])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_chat_template(CHAT_TEMPLATE)
        if begins is not None:
            writer.add_add_bos_token(begins)
    for name, values in weights.items():
        there = gguf_name(name)
        if ".attn_q." in there or ".attn_k." in there:
            values = permute(values, heads if ".attn_q." in there else KV_HEADS)
        type_name = "F32" if values.ndim == 1 else types if isinstance(types, str) else types[there]
        raw_type = library.GGMLQuantizationType[type_name]
        writer.add_tensor(there, np.ascontiguousarray(encode(values, type_name)), raw_dtype=raw_type)
    for name, values in (others or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if split and len(writer.tensors) > 1:
        return path.with_name(f"{path.stem}-00001-of-{len(writer.tensors):05d}.gguf")
    return path

"""Tiny random models of several architectures, saved by transformers itself, and the same tokenizer for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests import tiny
from workbench.checkpoint import Checkpoint, load

torch.set_num_threads(1)

SIZES = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 16}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, tie_word_embeddings=False),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, sliding_window=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED, sliding_window=8),
    "phi3": lambda: transformers.Phi3Config(**GROUPED),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=12, num_experts_per_tok=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=tiny.VOCAB, hidden_size=64, num_hidden_layers=2, state_size=8, eos_token_id=2
    ),
}


def save(path: Path, architecture: str, *, seed: int = 0, **config: Any) -> Any:
    """Write a random model of `architecture` with its tokenizer; returns transformers' model of it, float32."""
    made = CONFIGS[architecture]()
    for name, value in config.items():
        setattr(made, name, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()
    model.save_pretrained(path)
    tiny.write_tokenizer(path)
    return model


def opened(path: Path, architecture: str = "llama", **config: Any) -> Checkpoint:
    """The checkpoint of a random model."""
    save(path, architecture, **config)
    return load(path)


def some_ids(sequences: int = 2, length: int = 12) -> torch.Tensor:
    """Token ids [sequences, length] that are no special tokens."""
    random = torch.Generator().manual_seed(5)
    return torch.randint(3, tiny.VOCAB, (sequences, length), generator=random)

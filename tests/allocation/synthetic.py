"""Cards whose prices are made up, of models known by their configs alone: any size, at once.

The costs fall by four with every bit, as rounding errors do, from a level drawn for each matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import pandas as pd

from workbench import formats
from workbench.checkpoint import TensorInfo
from workbench.fit.outline import Outline, from_config
from workbench.measure.card import Card, Curve
from workbench.measure.prices import Prices
from workbench.progress import Progress, Steps

CURVE = Curve(1.2, 1.1, 0.1)
SIZES = {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 4096}
LAYERS = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}
LLAMA = {"model_type": "llama", "max_position_embeddings": 4096, "dtype": "bfloat16", **SIZES, **LAYERS}
AWKWARD = {**LLAMA, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}  # no K-quant fits 576
SEVENTY = {
    **LLAMA,
    **{"hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 128256},
    **{"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8},
}

MANY_EXPERTS = {
    **{"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "vocab_size": 151936},
    **{"num_hidden_layers": 60, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128},
    **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    **{"max_position_embeddings": 40960, "dtype": "bfloat16"},
}


@dataclass(frozen=True, eq=False)
class MadeUp(Card):
    """A card that prices any format by a formula; `seed` decides which matrices are the costly ones."""

    seed: int = 0

    def prices_steps(self, asked, *, threads=None) -> Steps[Prices]:
        yield Progress(0, 1, " weights")
        names = [asked] if isinstance(asked, (str, formats.Format)) else list(asked)
        random = np.random.default_rng(self.seed)
        rows = []
        for info in self.checkpoint.matrices:
            *experts, out, inputs = info.shape
            level = 1e-3 * float(np.exp(random.normal(0, 1.5)))
            for fmt in dict.fromkeys(map(formats.get, names)):
                used = fmt.used_for((out, inputs))
                missing = used.importance == "required" and info.role == "embed_tokens"
                rows.append(
                    {
                        "tensor": info.name,
                        "layer": info.layer,
                        "role": info.role,
                        "format": fmt.name,
                        "used": used.name,
                        "nbytes": prod(experts) * used.nbytes((out, inputs)),
                        "cost": np.nan if missing else level * 4 ** (4 - used.bits),
                        "params": info.params,
                    }
                )
        return Prices(pd.DataFrame(rows).astype({"layer": "Int64"}), self.curve, self)


def card(config: dict | None = None, seed: int = 0) -> MadeUp:
    outline, _ = from_config(config or LLAMA)
    return of(outline, seed)


def of(model: Outline, seed: int = 0) -> MadeUp:
    return MadeUp(model, {}, {}, CURVE, (), {}, seed)


def experts(layers: int = 12, many: int = 64) -> MadeUp:
    """A card of a model of many experts, each a matrix of its own as in a folder of safetensors."""
    config = {**MANY_EXPERTS, "num_hidden_layers": layers, "num_experts": many}
    outline, _ = from_config(config)
    tensors = {each.name: each for info in outline.tensors.values() for each in _apart(info)}
    return of(replace(outline, tensors=tensors))


def _apart(info: TensorInfo) -> list[TensorInfo]:
    """The experts of a stack, or the tensor itself."""
    if len(info.shape) < 3:
        return [info]
    parent, role = info.name.split(".experts.")
    made = (f"{parent}.experts.{number}.{role}.weight" for number in range(info.shape[0]))
    return [replace(info, name=name, shape=info.shape[1:], nbytes=2 * prod(info.shape[1:])) for name in made]

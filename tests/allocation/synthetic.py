"""Cards whose prices are made up, of models known by their configs alone: any size, at once.

The costs fall by four with every bit, as rounding errors do, from a level drawn for each matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import pandas as pd

from workbench import formats
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


MANY = {
    # 12 layers of 64 experts, each a matrix of its own as in a folder of safetensors
    f"model.layers.{layer}.mlp.experts.{expert}.{role}.weight": (512, 256) if role == "down_proj" else (256, 512)
    for layer in range(12)
    for expert in range(64)
    for role in ("gate_proj", "up_proj", "down_proj")
}


def experts() -> MadeUp:
    """A card of a model of many experts."""
    from pathlib import Path

    from workbench.checkpoint import TensorInfo, names

    tensors = {
        name: TensorInfo(name, shape, "BF16", 2 * prod(shape), Path("m"), 0, *names.place(name))
        for name, shape in {"model.embed_tokens.weight": (4096, 512), **MANY}.items()
    }
    return of(Outline("experts", Path("m"), "safetensors", {"model_type": "mixtral"}, {}, tensors))

"""What transformers' models keep between tokens, in llama.cpp's types: keys and values rounded as they are stored.

Every key and value that is attended to was rounded, also those of the tokens that are read at once, as in llama.cpp.
(transformers' own QuantizedCache attends to the exact ones of the first tokens that it is given, and to those of the
last 128; so one forward pass over a text shows nothing of it.) They are kept decoded: this is the quality of
a type, not its memory, which `workbench.memory` tells.

A few numbers of every key are far larger than the rest, and ruin the scale of their block. So llama.cpp turns keys
and values by a Hadamard matrix before it rounds them to blocks, which spreads those numbers over the head
(its src/llama-kv-cache.cpp, `attn_rot`; as in QuaRot, Ashkboos et al. 2024), and so does this.
"""

from __future__ import annotations

from functools import lru_cache
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import formats
from workbench.exceptions import WorkbenchError, need
from workbench.fit.cache import TYPES, type_names

if TYPE_CHECKING:
    import torch

TURNED = 64  # heads that are no multiple of it are not turned
Kept = tuple[str, str] | None  # the types of keys and of values; None: what the model computes in


def kept_as(kv: str | tuple[str, str] | None, config: dict[str, Any]) -> Kept:
    """What a caller asked for, checked, for a model of this config.

    Raises:
        WorkbenchError: a type that there is not, or one whose blocks do not divide the model's heads.
    """
    if kv is None:
        return None
    found = type_names(kv, "llama.cpp")
    own = config.get("text_config")  # of a model with other towers beside the text's
    text = own if isinstance(own, dict) else config
    width = text.get("head_dim") or (text.get("hidden_size") or 0) // (text.get("num_attention_heads") or 1)
    for name, what in zip(found, ("keys", "values"), strict=True):
        _check_width(name, what, width)
    return found


def _check_width(name: str, what: str, width: int) -> None:
    if width % TYPES[name][0]:
        raise WorkbenchError(
            "kv",
            f"{what} as {name} come in blocks of {TYPES[name][0]}, and this model's heads are {width} wide",
            allowed="f16, bf16, f32",
            do="keep them as f16",
        )


def cache_of(model: Any, kept: Kept) -> dict[str, Any]:
    """The arguments of a forward pass that begins a text: an empty cache that rounds; nothing where nothing is rounded.

    Raises:
        WorkbenchError: a model that keeps no keys and values.
    """
    if kept is None:
        return {}
    if "past_key_values" not in signature(model.forward).parameters:
        raise WorkbenchError("kv", f"{type(model).__name__} keeps no keys and values", do="leave it out")
    return {"past_key_values": _rounding()(kept, config=model.config), "use_cache": True}


@lru_cache
def _rounding() -> Any:
    """The class of such caches, which needs transformers."""
    base: Any = need("transformers").DynamicCache

    class Rounding(base):
        def __init__(self, kept: tuple[str, str], **settings: Any) -> None:
            super().__init__(**settings)
            self.kept = kept

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *others: Any, **named: Any) -> Any:
            both = zip((key_states, value_states), self.kept, ("keys", "values"), strict=True)
            return super().update(*(_rounded(*each) for each in both), *others, **named)

    return Rounding


def _rounded(states: torch.Tensor, name: str, what: str) -> torch.Tensor:
    """States [.., head] as they come back from being stored, block after block of a head."""
    torch, width = need("torch"), states.shape[-1]
    _check_width(name, what, width)
    turned = hadamard(turn_of(name, what, width))  # its own inverse
    rows = states.detach().float().cpu().numpy().reshape(-1, len(turned))
    stored = formats.get(name.upper()).roundtrip((rows @ turned).reshape(-1, width))
    return torch.from_numpy(stored.reshape(rows.shape) @ turned).to(states.device, states.dtype).reshape(states.shape)


def turn_of(name: str, what: str, width: int) -> int:
    """How many neighbours in a head llama.cpp turns together: all it can of keys, 64 of values; 1: none."""
    if TYPES[name][0] == 1 or width % TURNED:
        return 1
    return width & -width if what == "keys" else TURNED


@lru_cache
def hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix, scaled to keep lengths: float32 [size, size], for a power of two."""
    made = np.ones((1, 1), np.float32)
    while len(made) < size:
        made = np.block([[made, made], [made, -made]])
    return (made / size**0.5).astype(np.float32)

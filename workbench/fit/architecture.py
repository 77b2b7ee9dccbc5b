"""What decides a model's memory: its tensors' shapes, and what each layer keeps between tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Shape = tuple[int, ...]
Kind = Literal["full", "window", "latent", "shared", "state", "none"]


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps between tokens.

    Attributes:
        kind: "full": keys and values of every token; "window": of the last `window` tokens;
            "latent": one compressed vector a token, from which keys and values are made
            (multi-head latent attention); "shared": another layer's; "state": of a fixed
            size (state-space models, linear attention, short convolutions); "none".
        key, value: values kept for each token, all key-value heads together.
        window: how many tokens back the layer sees; 0: all.
        channels, kernel: of a state's convolution, which keeps its last inputs.
        state: values of a state's recurrence, for each sequence.

    A layer with attention and a state side by side (Falcon-H1) has both parts.
    """

    kind: Kind
    key: int = 0
    value: int = 0
    window: int = 0
    channels: int = 0
    kernel: int = 0
    state: int = 0


@dataclass(frozen=True)
class Architecture:
    """A model as far as memory is concerned. All sizes are numbers of values, not bytes.

    Attributes:
        family: config.json's `model_type`, or a GGUF's `general.architecture`.
        layers: what each layer keeps between tokens.
        tensors: name -> shape, [out, in] for a matrix and [experts, out, in] for a stack of
            experts; empty where the shapes come from a header instead.
        hidden: width of the residual stream.
        vocabulary: number of tokens.
        heads: query heads (of the layer with most).
        head: width of a head.
        feed_forward: width of the widest feed-forward network that every token passes.
        experts, experts_used: in a mixture-of-experts layer, and how many of them each token passes; 0 without.
        expert_width: width of one expert's feed-forward network.
        gated: whether a feed-forward network has a gate beside its up projection.
        scan: bytes for each token that transformers takes for a layer's state without the
            kernels of mamba-ssm or flash-linear-attention; 0 without states.
        context: the longest context that the model was made for, in tokens; 0: not said.
        assumed: what had to be assumed; if anything, figures are estimates.
    """

    family: str
    layers: tuple[LayerCache, ...]
    hidden: int
    vocabulary: int
    heads: int = 0
    head: int = 0
    feed_forward: int = 0
    experts: int = 0
    experts_used: int = 0
    expert_width: int = 0
    gated: bool = True
    scan: int = 0
    context: int = 0
    tensors: Mapping[str, Shape] = field(default_factory=dict, repr=False)
    assumed: tuple[str, ...] = ()

    @cached_property
    def params(self) -> dict[str, int]:
        """Parameters by part; a head that is tied to the embedding is counted once, with the embedding."""
        found: dict[str, int] = {}
        for name, shape in self.tensors.items():
            part = part_of(name, shape)
            found[part] = found.get(part, 0) + math.prod(shape)
        return {part: found[part] for part in PARTS if part in found}

    @property
    def active_params(self) -> int:
        """Parameters that one token passes: all, but of the experts only those it is sent to."""
        share = self.experts_used / self.experts if self.experts else 1.0
        return round(sum(count * (share if part == "experts" else 1) for part, count in self.params.items()))


# The parts of a model, in the order in which they are shown.
PARTS = ("embedding", "attention", "state space", "mlp", "experts", "norms", "head", "other")

_PART_PATTERNS = (
    # of names in transformers' and in llama.cpp's convention; the first that matches decides
    (
        "other",
        r"(?:^|[._])(?:vision|visual|audio|image|mm|mtp|nextn|multi_modal_projector)[._]|altup|laurel|per_layer_",
    ),
    ("embedding", r"embed|wte|wpe|token_embd|position_embd|per_layer_token_embd"),
    ("head", r"^(?:lm_head|output|embed_out)\."),
    ("state space", r"mamba|ssm|linear_attn|shortconv|\.conv\.|conv1d|A_log|dt_(?:bias|proj)|\.D$|rg_lru"),
    ("norms", r"norm|\.ln_|layernorm"),
    ("experts", r"experts\.|_exps|\.experts|w[123]\.\d+"),
    ("attention", r"attn|attention|[qkvo]_proj|qkv|query_key_value|sinks|kv_[ab]_|q_[ab]_|indexer"),
    ("mlp", r"mlp|ffn|feed_forward|gate|up_proj|down_proj|fc[12]|dense|router|moe|input_linear|output_linear"),
)
_PARTS = [(part, re.compile(pattern)) for part, pattern in _PART_PATTERNS]


def part_of(name: str, shape: Shape) -> str:
    """The part of a model that a tensor belongs to, one of `PARTS`."""
    found = next((part for part, pattern in _PARTS if pattern.search(name)), "other")
    if found == "experts" and ("shared_experts" in name or "shexp" in name):
        return "mlp"  # every token passes them
    return found

"""From a GGUF's metadata to an architecture, by the keys that llama.cpp itself reads.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from workbench.checkpoint import TensorInfo
from workbench.fit import config as keys
from workbench.fit.architecture import Architecture, Kind, LayerCache
from workbench.fit.config import checked
from workbench.fit.families import LLAMA_CPP_PERIODS

NO_ATTENTION = ("mamba", "mamba2", "rwkv6", "rwkv7", "arwkv7")
BOTH = ("falcon-h1",)  # attention and a state side by side in every layer


def describe(metadata: Mapping[str, Any], tensors: Iterable[TensorInfo], item: str = "the GGUF") -> Architecture:
    """The architecture of a GGUF file; the tensors' shapes decide what the metadata leaves open.

    Raises:
        WorkbenchError: naming the key that is missing, not a number, or out of range.
    """
    return _Metadata(metadata, list(tensors), item).build()


class _Metadata:
    def __init__(self, metadata: Mapping[str, Any], tensors: list[TensorInfo], item: str) -> None:
        self.metadata, self.item = metadata, item
        self.name = str(metadata.get("general.architecture", ""))
        self.shapes = {info.name: info.shape for info in tensors}
        self.layers = self.whole("block_count", most=keys.MOST_LAYERS)
        self.layers -= self.whole("nextn_predict_layers", default=0, least=0, most=self.layers - 1)
        self.hidden = self.whole("embedding_length")
        self.heads = self.each("attention.head_count", 0)
        self.kv_heads = self.each("attention.head_count_kv", None)

    def build(self) -> Architecture:
        head = self.hidden // max(self.heads) if max(self.heads) else 0
        key, value = (
            self.whole("attention.key_length", default=head, least=0),
            self.whole("attention.value_length", default=head, least=0),
        )
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        listed = len(tokens) if isinstance(tokens, list) else getattr(tokens, "count", 0)
        shape = self.shapes.get("token_embd.weight", (listed, self.hidden))
        experts = self.whole("expert_count", default=0, least=0)
        wide = self.each("feed_forward_length", 0)
        return Architecture(
            family=self.name,
            layers=tuple(self._layer(layer, key, value) for layer in range(self.layers)),
            hidden=self.hidden,
            vocabulary=max(1, shape[0]),
            heads=max(self.heads),
            head=self.whole("attention.key_length_mla", default=key, least=0),
            feed_forward=max((width for layer, width in enumerate(wide) if not self._sparse(layer)), default=0),
            experts=experts,
            experts_used=self.whole("expert_used_count", default=experts, least=0, most=max(experts, 0)),
            expert_width=self.whole("expert_feed_forward_length", default=max(wide), least=0) if experts else 0,
            gated=any(".ffn_gate" in name for name in self.shapes) or self.name in ("phi3", "chatglm", "glm4"),
            context=self.whole("context_length", default=0, least=0, most=1 << 40),
        )

    def _layer(self, layer: int, key: int, value: int) -> LayerCache:
        state = self._state(layer)
        has_attention = self.name not in NO_ATTENTION and any(
            f"blk.{layer}.{name}.weight" in self.shapes for name in ("attn_k", "attn_qkv", "attn_kv_a_mqa", "attn_q")
        )
        if not has_attention or self.kv_heads[layer] == 0:
            return state if state.kind == "state" else LayerCache("none")
        if self.layers - layer <= self._shared():
            return LayerCache("shared")
        if self.whole("attention.kv_lora_rank", default=0, least=0):
            rank, rope = self.whole("attention.kv_lora_rank"), self.whole("rope.dimension_count")
            return LayerCache("latent", rank + rope, 0)
        window = self._window(layer)
        if window and self.whole("attention.key_length_swa", default=0, least=0):
            key = self.whole("attention.key_length_swa")
            value = self.whole("attention.value_length_swa", default=key)
        kind: Kind = "window" if window else "full"
        kept = self.kv_heads[layer]
        parts = (state.channels, state.kernel, state.state) if self.name in BOTH else (0, 0, 0)
        return LayerCache(kind, kept * key, kept * value, window, *parts)

    def _state(self, layer: int) -> LayerCache:
        if f"blk.{layer}.shortconv.conv.weight" in self.shapes:
            return LayerCache("state", channels=self.hidden, kernel=self.whole("shortconv.l_cache"))
        if f"blk.{layer}.ssm_conv1d.weight" not in self.shapes:
            return LayerCache("none")
        inner, state = self.whole("ssm.inner_size"), self.whole("ssm.state_size")
        groups = self.whole("ssm.group_count", default=0, least=0)
        return LayerCache(
            "state",
            channels=inner + 2 * groups * state,
            kernel=self.whole("ssm.conv_kernel"),
            state=inner * state,
        )

    def _window(self, layer: int) -> int:
        """How many tokens back a layer sees in llama.cpp; 0: all, which it also keeps for windows it does not use."""
        window = self.whole("attention.sliding_window", default=0, least=0, most=1 << 40)
        if self.name == "llama4":
            window = self.whole("attention.chunk_size", default=8192)
        pattern = self.metadata.get(f"{self.name}.attention.sliding_window_pattern")
        if isinstance(pattern, list) and len(pattern) >= self.layers:
            return window if pattern[layer] else 0
        period = pattern if type(pattern) is int and pattern > 0 else LLAMA_CPP_PERIODS.get(self.name, 0)
        return window if period and layer % period < period - 1 else 0

    def _shared(self) -> int:
        """How many of the last layers use the keys and values of a layer before them."""
        default = max(0, self.layers - 20) if self.name == "gemma3n" else 0  # llama.cpp's fixed number
        return self.whole("attention.shared_kv_layers", default=default, least=0, most=self.layers - 1)

    def _sparse(self, layer: int) -> bool:
        return f"blk.{layer}.ffn_gate_inp.weight" in self.shapes

    # --- reading ------------------------------------------------------------------------------

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = keys.MOST_WIDTH) -> int:
        found = self.metadata.get(f"{self.name}.{key}", default)
        if isinstance(found, list):  # one for each layer: the largest decides
            found = max((one for one in found if type(one) is int), default=default)
        return checked(self.item, f"{self.name}.{key}", found, least, most)

    def each(self, key: str, default: int | None) -> list[int]:
        """A number for each layer; by default that of the query heads."""
        full = f"{self.name}.{key}"
        found = self.metadata.get(full, default)
        if found is None:
            return self.heads
        many = found if isinstance(found, list) else [found] * self.layers
        if len(many) < self.layers:
            checked(self.item, f"the length of {full}", len(many), self.layers, keys.MOST_LAYERS)
        return [checked(self.item, full, one, 0, keys.MOST_WIDTH) for one in many[: self.layers]]

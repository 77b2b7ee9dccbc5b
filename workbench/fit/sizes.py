"""The sizes that a config names, and which layer is what."""

from __future__ import annotations

from workbench.fit import config as keys
from workbench.fit.config import Config
from workbench.fit.families import Family, Flag

FULL, WINDOW, STATE, BOTH, FEED_FORWARD, SPARSE = "full", "window", "state", "both", "mlp", "moe"
_MIXERS = {
    # what configs call a layer -> what it is here
    **{"full_attention": FULL, "attention": FULL, "indexed_attention": FULL, "deepseek_sparse_attention": FULL},
    **{"sliding_attention": WINDOW, "chunked_attention": WINDOW},
    **{"linear_attention": STATE, "mamba": STATE, "mamba2": STATE, "conv": STATE, "recurrent": STATE},
    **{"hybrid": BOTH, "mlp": FEED_FORWARD, "moe": SPARSE},
}


class Sizes:
    """A config of a known (or supposed) family, read; raises WorkbenchError for what cannot be."""

    def __init__(self, config: Config, name: str, family: Family) -> None:
        self.config, self.name, self.family = config, name, family
        self.assumed: list[str] = []
        self.layers = config.whole(*keys.LAYERS, most=keys.MOST_LAYERS)
        self.hidden = config.whole(*keys.HIDDEN)
        self.vocabulary = config.whole(*keys.VOCABULARY, most=keys.MOST_VOCABULARY)
        self.heads = 0 if name in ("mamba", "mamba2", "falcon_mamba") else config.whole(*keys.HEADS)
        self.kv_heads = self._kv_heads()
        self.head = self._head()
        self.experts = config.whole(*keys.EXPERTS, default=0, least=0) if self._has_experts() else 0
        self.used = config.whole(*keys.EXPERTS_USED, default=self.experts, least=0) if self.experts else 0
        if self.used > self.experts:
            raise config.refuse(keys.EXPERTS_USED[0], self.used, f"at most the number of experts, {self.experts}")
        self.wide = self._feed_forward_width()
        self.expert_width = self._expert_width()

    def _kv_heads(self) -> int:
        config = self.config
        old_falcon = self.name == "falcon" and not config.flag("new_decoder_architecture")
        if (old_falcon or self.name == "gpt_bigcode") and config.flag("multi_query", default=True):
            return 1
        if old_falcon or self.name in ("gpt2", "gptj", "gpt_neox", "gpt_bigcode") or not self.heads:
            return self.heads
        found = config.whole(*keys.KV_HEADS, default=self.heads)
        if found > self.heads or self.heads % found:
            raise config.refuse(keys.KV_HEADS[0], found, f"a divisor of the number of heads, {self.heads}")
        return found

    def _head(self) -> int:
        given = self.config.raw("head_dim")
        if given is not None or not self.heads:
            return self.config.whole("head_dim", default=0, least=0)
        if self._is_latent():
            return 0
        if self.hidden % self.heads:
            raise self.config.refuse("hidden_size", self.hidden, f"a multiple of the number of heads, {self.heads}")
        return self.hidden // self.heads

    def _head_of(self, kind: str) -> int:
        """The width of a head in layers of this kind; Gemma 4 has wider ones where it sees everything."""
        if self._is_latent():
            return self.config.whole("qk_nope_head_dim") + self.config.whole("qk_rope_head_dim")
        return self.config.whole("global_head_dim") if self.name == "gemma4" and kind == FULL else self.head

    def _is_latent(self) -> bool:
        return self.config.raw("kv_lora_rank") is not None

    def _has_experts(self) -> bool:
        return self.name != "gemma4" or self.config.flag("enable_moe_block")

    def _feed_forward_width(self) -> list[int]:
        """Of each layer's dense feed-forward network."""
        config = self.config
        if self.name in ("mamba", "mamba2", "falcon_mamba"):
            return [0] * self.layers
        if self.name == "llama4":
            return config.sizes("intermediate_size_mlp", self.layers, 16384)
        if self.name == "lfm2":
            return [self._lfm2_width()] * self.layers
        if isinstance(config.raw("intermediate_size"), list):
            return config.sizes("intermediate_size", self.layers, 1)
        default = 4 * self.hidden if not self.family.gated else None
        if default is None and self.experts and config.raw("moe_intermediate_size") is not None:
            default = config.whole("moe_intermediate_size")  # a model of experts alone may leave it out
        found = [config.whole(*keys.INTERMEDIATE, default=default)] * self.layers
        if self.name == "gemma4" and config.flag("use_double_wide_mlp"):
            shared = self.layers - config.whole("num_kv_shared_layers", default=0, least=0, most=self.layers)
            found[shared:] = [2 * width for width in found[shared:]]
        return found

    def _lfm2_width(self) -> int:
        width = self.config.whole("block_ff_dim", "intermediate_size")
        if not self.config.flag("block_auto_adjust_ff_dim", default=True):
            return width
        multiplier = self.config.raw("block_ffn_dim_multiplier")
        scale = float(multiplier) if isinstance(multiplier, int | float) and 0 < multiplier < 100 else 1.0
        step = self.config.whole("block_multiple_of", default=256)
        return -(-int(scale * int(2 * width / 3)) // step) * step

    def _expert_width(self) -> int:
        if not self.experts:
            return 0
        return self.config.whole("moe_intermediate_size", *keys.INTERMEDIATE)

    def _shared_width(self) -> int:
        """Of the experts that every token passes, taken together; 0 without."""
        config = self.config
        if self.name == "llama4":
            return self.expert_width
        own = config.whole(
            *("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size"),
            default=0,
            least=0,
        )
        if self.name == "nemotron_h":
            return own * config.whole("n_shared_experts", default=1, least=0)
        count = config.whole("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", default=0, least=0)
        return own or count * self.expert_width

    def _flag(self, flag: Flag) -> bool:
        return flag if isinstance(flag, bool) else self.config.flag(flag)

    # --- which layer is what ------------------------------------------------------------------

    def _kinds(self) -> list[str]:
        """What each layer's mixer is, in the words of `_MIXERS`' values."""
        config, family = self.config, self.family
        given = config.words("layer_types", self.layers) or config.words("layers_block_type", self.layers)
        if self.name in ("mamba", "mamba2", "falcon_mamba"):
            return [STATE] * self.layers
        if self.name == "falcon_h1":
            return [BOTH] * self.layers
        if given is not None:
            return self._named(given)
        if self.name == "nemotron_h":
            return self._nemotron_pattern()
        if family.mixer:
            return [FULL if layer in self._attention_layers() else STATE for layer in range(self.layers)]
        return self._windows()

    def _named(self, words: list[str]) -> list[str]:
        unknown = sorted(set(words) - set(_MIXERS))
        if unknown:
            self.assumed.append(f"layers of the kind {unknown[0][:40]!r} were taken for full attention")
        found = [_MIXERS.get(word, FULL) for word in words]
        if WINDOW in found and not self._window():
            raise self.config.refuse(
                self.family.window_key, None, "a number of tokens, since some layers have a window"
            )
        if self.name == "gemma4":
            found[-1] = FULL
        return found

    def _nemotron_pattern(self) -> list[str]:
        words = {"M": STATE, "*": FULL, "-": FEED_FORWARD, "E": SPARSE}
        pattern = self.config.word("hybrid_override_pattern")
        if len(pattern) != self.layers or set(pattern) - set(words):
            raise self.config.refuse(
                "hybrid_override_pattern", pattern, f"{self.layers} of the letters {' '.join(words)}"
            )
        return [words[letter] for letter in pattern]

    def _attention_layers(self) -> set[int]:
        """The layers of a hybrid that have attention, where the config lists no kinds."""
        config = self.config
        if self.name == "jamba":
            period = config.whole("attn_layer_period", default=8)
            return set(range(config.whole("attn_layer_offset", default=4, least=0), self.layers, period))
        if self.name in ("bamba", "lfm2", "lfm2_moe"):
            return set(config.numbers("attn_layer_indices") or config.numbers("full_attn_idxs"))
        if self.family.mixer == "delta":
            interval = config.whole("full_attention_interval", default=4)
            return set(range(interval - 1, self.layers, interval))
        return set()

    def _windows(self) -> list[str]:
        rule, config = self.family.window, self.config
        if not self._window() or (rule == "upper" and not config.flag("use_sliding_window")):
            return [FULL] * self.layers
        if rule == "upper":
            first = config.whole("max_window_layers", default=self.layers, least=0)
            return [WINDOW if layer >= first else FULL for layer in range(self.layers)]
        if isinstance(rule, int):
            pattern = config.raw("sliding_window_pattern", "_sliding_window_pattern")
            if isinstance(pattern, str):  # "LLLG": local and global layers, in turn
                return [FULL if pattern[layer % len(pattern)] == "G" else WINDOW for layer in range(self.layers)]
            every = config.whole("sliding_window_pattern", "_sliding_window_pattern", default=rule)
            kinds = [FULL if layer % every == every - 1 else WINDOW for layer in range(self.layers)]
            return [*kinds[:-1], FULL] if self.name == "gemma4" else kinds
        return [WINDOW if rule == "all" else FULL] * self.layers

    def _window(self) -> int:
        key = self.family.window_key
        if key in self.config.values and self.config.values[key] is None:
            return 0  # null means none, where a missing key means the family's default
        return self.config.whole(key, default=0, least=0, most=1 << 40)

    def _shared_from(self, kinds: list[str]) -> int:
        """The first of the last layers, which use the keys and values of a layer before them."""
        shared = self.config.whole("num_kv_shared_layers", default=0, least=0, most=self.layers)
        first = self.layers - shared
        if set(kinds[first:]) - set(kinds[:first]):
            raise self.config.refuse(
                "num_kv_shared_layers", shared, "few enough that a layer of each kind is left that keeps its own"
            )
        return first

    def _is_sparse(self, layer: int) -> bool:
        """Whether the feed-forward network of a layer is a mixture of experts."""
        config = self.config
        if not self.experts:
            return False
        if self.name == "jamba":
            period = config.whole("expert_layer_period", default=2)
            return layer % period == config.whole("expert_layer_offset", default=1, least=0) % period
        if self.name == "llama4":
            listed = config.numbers("moe_layers")
            step = config.whole("interleave_moe_layer_step", default=1)
            return layer in listed if listed else layer % step == step - 1
        kinds = config.words("mlp_layer_types", self.layers)
        if kinds is not None:
            return kinds[layer] == "sparse"
        first = config.whole("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", default=0, least=0)
        frequency = config.whole("moe_layer_freq", "decoder_sparse_step", "moe_layer_interval", default=1)
        offset = layer + 1 if config.raw("moe_layer_freq") is None else layer
        return layer >= first and offset % frequency == 0 and layer not in config.numbers("mlp_only_layers")

    def _is_dense_anywhere(self, kinds: list[str]) -> bool:
        return any(not self._is_sparse(layer) and kinds[layer] != SPARSE for layer in range(self.layers))

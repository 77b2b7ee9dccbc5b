"""The tensors of a model's layers, and what each layer keeps between tokens."""

from __future__ import annotations

import math

from workbench.fit import config as keys
from workbench.fit.architecture import LayerCache, Shape
from workbench.fit.config import Config
from workbench.fit.families import Family
from workbench.fit.sizes import BOTH, FEED_FORWARD, FULL, SPARSE, STATE, WINDOW, Sizes

NONE = LayerCache("none")


class Tensors(Sizes):
    """Collects tensors by name, layer by layer."""

    def __init__(self, config: Config, name: str, family: Family) -> None:
        super().__init__(config, name, family)
        self.tensors: dict[str, Shape] = {}
        self.at = ""  # what the names of the layer's tensors begin with
        self.scan = 0

    def _matrix(self, name: str, rows: int, cols: int, bias: bool = False) -> None:
        self.tensors[f"{self.at}{name}.weight"] = (rows, cols)
        if bias:
            self.tensors[f"{self.at}{name}.bias"] = (rows,)

    def _vector(self, name: str, *shape: int) -> None:
        self.tensors[f"{self.at}{name}"] = shape

    def _norm(self, name: str, width: int = 0, bias: bool | None = None) -> None:
        if not self.family.norms:  # OLMo's norms have no weights
            return
        self._vector(f"{name}.weight", width or self.hidden)
        if self.family.norm_bias if bias is None else bias:
            self._vector(f"{name}.bias", width or self.hidden)

    def _norms(self) -> None:
        names = self.family.norms
        if self.name == "stablelm" and self.config.flag("use_parallel_residual"):
            names = names[:1]
        if self.name == "falcon" and self.config.flag("parallel_attn", default=True):
            both = self.config.flag("new_decoder_architecture")
            two = both and self.config.whole("num_ln_in_parallel_attn", default=2) == 2
            names = names if two else names[:1]
        for name in names:
            self._norm(name)

    def _mixer(self, kind: str, *, shared: bool) -> LayerCache:
        """The tensors of a layer's attention or state, and what it keeps."""
        if kind in (FEED_FORWARD, SPARSE):
            return NONE
        state = self._state() if kind in (STATE, BOTH) else NONE
        if kind == STATE:
            return state
        attention = self._latent_attention() if self._is_latent() else self._attention(kind, shared)
        if shared:
            return LayerCache("shared")
        if kind == WINDOW:
            return LayerCache("window", attention.key, attention.value, window=self._window())
        if kind == BOTH:
            return LayerCache("full", attention.key, attention.value, 0, state.channels, state.kernel, state.state)
        return attention

    def _attention(self, kind: str, shared: bool) -> LayerCache:
        family, head, kv_heads = self.family, self._head_of(kind), self.kv_heads
        same = False  # whether the keys serve as values too
        if self.name == "gemma4" and kind == FULL and self.config.flag("attention_k_eq_v"):
            same, kv_heads = True, self.config.whole("num_global_key_value_heads", default=kv_heads)
        query, keys_ = self.heads * head, kv_heads * head
        bias = self._flag(family.qkv_bias)
        if family.fused_qkv:
            self._matrix("self_attn.qkv_proj", query + 2 * keys_, self.hidden, bias)
        else:
            self._matrix("self_attn.q_proj", query * (2 if family.query_gate else 1), self.hidden, bias)
            if not shared:
                self._matrix("self_attn.k_proj", keys_, self.hidden, bias)
                if not same:
                    self._matrix("self_attn.v_proj", keys_, self.hidden, bias)
        self._matrix("self_attn.o_proj", self.hidden, query, self._flag(family.o_bias))
        if family.qk_norm and self._flag(family.qk_norm_flag):
            own = {"head": (1, 1), "width": (self.heads, kv_heads), "each": (self.heads, kv_heads)}[family.qk_norm]
            self._vector("self_attn.q_norm.weight", own[0] * head)
            if not shared:
                self._vector("self_attn.k_norm.weight", own[1] * head)
        if family.sinks:
            self._vector("self_attn.sinks", self.heads)
        return LayerCache("full", keys_, keys_)

    def _latent_attention(self) -> LayerCache:
        """Multi-head latent attention: DeepSeek-V2, arXiv 2405.04434, section 2.1."""
        config, heads = self.config, self.heads
        rank, rope = config.whole("kv_lora_rank"), config.whole("qk_rope_head_dim")
        plain, value = config.whole("qk_nope_head_dim"), config.whole("v_head_dim")
        bias = self._flag("attention_bias")
        if config.raw("q_lora_rank") is not None:
            queries = config.whole("q_lora_rank")
            self._matrix("self_attn.q_a_proj", queries, self.hidden, bias)
            self._vector("self_attn.q_a_layernorm.weight", queries)
            self._matrix("self_attn.q_b_proj", heads * (plain + rope), queries)
        else:
            self._matrix("self_attn.q_proj", heads * (plain + rope), self.hidden)
        self._matrix("self_attn.kv_a_proj_with_mqa", rank + rope, self.hidden, bias)
        self._vector("self_attn.kv_a_layernorm.weight", rank)
        self._matrix("self_attn.kv_b_proj", heads * (plain + value), rank)
        self._matrix("self_attn.o_proj", self.hidden, heads * value, bias)
        index = 0
        if config.raw("index_head_dim") is not None:  # the indexer of DeepSeek's sparse attention keeps keys of its own
            index, index_heads = config.whole("index_head_dim"), config.whole("index_n_heads")
            queries = config.whole("q_lora_rank")
            self._matrix("self_attn.indexer.wq_b", index_heads * index, queries)
            self._matrix("self_attn.indexer.wk", index, self.hidden)
            self._norm("self_attn.indexer.k_norm", index, bias=True)
            self._matrix("self_attn.indexer.weights_proj", index_heads, self.hidden)
        return LayerCache("latent", rank + rope + index, 0)

    def _state(self) -> LayerCache:
        mixer = self.family.mixer
        if mixer == "mamba":
            return self._mamba()
        if mixer in ("mamba2", "both"):
            return self._mamba2()
        if mixer == "delta":
            return self._delta_net()
        if mixer == "conv":
            return self._short_convolution()
        self.assumed.append("a layer with linear attention was counted without weights and without a state")
        return LayerCache("state")

    def _mamba(self) -> LayerCache:
        """Mamba: Gu and Dao, arXiv 2312.00752, as in Jamba and Mamba itself."""
        config, at = self.config, "mixer"
        inner = config.whole("mamba_expand", "expand", default=2) * self.hidden
        if self.name != "jamba":
            inner = config.whole("intermediate_size", default=inner)
        state = config.whole("mamba_d_state", "state_size", default=16)
        kernel = config.whole("mamba_d_conv", "conv_kernel", default=4)
        given = config.raw("mamba_dt_rank", "time_step_rank")
        rank = (
            math.ceil(self.hidden / 16) if given in (None, "auto") else config.whole("mamba_dt_rank", "time_step_rank")
        )
        bias = config.flag("mamba_proj_bias", "use_bias")
        self._matrix(f"mamba.{at}.in_proj", 2 * inner, self.hidden, bias)
        self._vector(f"mamba.{at}.conv1d.weight", inner, 1, kernel)
        if config.flag("mamba_conv_bias", "use_conv_bias", default=True):
            self._vector(f"mamba.{at}.conv1d.bias", inner)
        self._matrix(f"mamba.{at}.x_proj", rank + 2 * state, inner)
        self._matrix(f"mamba.{at}.dt_proj", inner, rank, bias=True)
        self._vector(f"mamba.{at}.A_log", inner, state)
        self._vector(f"mamba.{at}.D", inner)
        self._matrix(f"mamba.{at}.out_proj", self.hidden, inner, bias)
        if self.name == "jamba":
            for name, width in (("dt", rank), ("b", state), ("c", state)):
                self._vector(f"mamba.{name}_layernorm.weight", width)
        self.scan = 12 * inner * state + 20 * inner
        return LayerCache("state", channels=inner, kernel=kernel, state=inner * state)

    def _mamba2(self) -> LayerCache:
        """Mamba 2: Dao and Gu, arXiv 2405.21060."""
        config = self.config
        heads = config.whole("mamba_n_heads", "mamba_num_heads", "num_heads", default=128)
        inner = config.whole("mamba_expand", "expand", default=2) * self.hidden
        if self.name == "falcon_h1":
            inner = config.whole("mamba_d_ssm", default=inner)
        given = config.raw("mamba_d_head", "mamba_head_dim", "head_dim" if self.name == "mamba2" else "mamba_d_head")
        if given not in (None, "auto"):
            width = config.whole("mamba_d_head", "mamba_head_dim", "head_dim")
            if self.name == "nemotron_h":
                inner = heads * width
            elif heads * width != inner:
                raise config.refuse("mamba_d_head", width, f"{heads} heads that make up {inner} channels")
        state = config.whole("mamba_d_state", "ssm_state_size", "state_size", default=256)
        groups = config.whole("mamba_n_groups", "n_groups", default=1)
        kernel = config.whole("mamba_d_conv", "conv_kernel", default=4)
        channels = inner + 2 * groups * state
        bias = config.flag("mamba_proj_bias", "use_bias")
        self._matrix("mamba.in_proj", inner + channels + heads, self.hidden, bias)
        self._vector("mamba.conv1d.weight", channels, 1, kernel)
        if config.flag("mamba_conv_bias", "use_conv_bias", default=True):
            self._vector("mamba.conv1d.bias", channels)
        for name in ("dt_bias", "A_log", "D"):
            self._vector(f"mamba.{name}", heads)
        if self.name != "falcon_h1" or config.flag("mamba_rms_norm"):
            self._vector("mamba.norm.weight", inner)
        self._matrix("mamba.out_proj", self.hidden, inner, config.flag("projectors_bias", default=bias))
        chunk = config.whole("mamba_chunk_size", "chunk_size", default=256)
        self.scan = heads * (9 * chunk + 17 * state) + 36 * inner + 5 * self.hidden
        return LayerCache("state", channels=channels, kernel=kernel, state=inner * state)

    def _delta_net(self) -> LayerCache:
        """Gated delta nets: Yang, Kautz and Hatamizadeh, arXiv 2412.06464."""
        config = self.config
        key_heads = config.whole("linear_num_key_heads", default=16)
        value_heads = config.whole("linear_num_value_heads", default=32)
        key_head = config.whole("linear_key_head_dim", default=128)
        value_head = config.whole("linear_value_head_dim", default=128)
        kernel = config.whole("linear_conv_kernel_dim", default=4)
        key, value = key_heads * key_head, value_heads * value_head
        channels = 2 * key + value
        self._matrix("linear_attn.in_proj_qkvz", channels + value, self.hidden)
        self._matrix("linear_attn.in_proj_ba", 2 * value_heads, self.hidden)
        self._vector("linear_attn.conv1d.weight", channels, 1, kernel)
        self._vector("linear_attn.dt_bias", value_heads)
        self._vector("linear_attn.A_log", value_heads)
        self._vector("linear_attn.norm.weight", value_head)
        self._matrix("linear_attn.out_proj", self.hidden, value)
        self.scan = 50 * value + 23 * self.hidden
        return LayerCache("state", channels=channels, kernel=kernel, state=value_heads * key_head * value_head)

    def _short_convolution(self) -> LayerCache:
        kernel, bias = self.config.whole("conv_L_cache", default=3), self.config.flag("conv_bias")
        self._matrix("conv.in_proj", 3 * self.hidden, self.hidden, bias)
        self._vector("conv.conv.weight", self.hidden, 1, kernel)
        if bias:
            self._vector("conv.conv.bias", self.hidden)
        self._matrix("conv.out_proj", self.hidden, self.hidden, bias)
        return LayerCache("state", channels=self.hidden, kernel=kernel)

    def _feed_forward(self, layer: int, kind: str) -> None:
        if self.name in ("mamba", "mamba2", "falcon_mamba"):
            return
        if self.name == "nemotron_h" and kind not in (FEED_FORWARD, SPARSE):
            return
        sparse = kind == SPARSE if self.name == "nemotron_h" else self._is_sparse(layer)
        if sparse:
            self._experts()
        if not sparse or self.name == "gemma4":
            self._dense("mlp", self.wide[layer], self._flag(self.family.mlp_bias))
        elif width := self._shared_width():
            self._dense("mlp.shared_experts", width, False)
            if self.family.shared_gate:
                self._matrix("mlp.shared_expert_gate", 1, self.hidden)

    def _dense(self, at: str, width: int, bias: bool) -> None:
        if self.family.fused_up:
            self._matrix(f"{at}.gate_up_proj", 2 * width, self.hidden, bias)
        else:
            if self.family.gated:
                self._matrix(f"{at}.gate_proj", width, self.hidden, bias)
            self._matrix(f"{at}.up_proj", width, self.hidden, bias)
        self._matrix(f"{at}.down_proj", self.hidden, width, bias)

    def _experts(self) -> None:
        count, width, hidden = self.experts, self.expert_width, self.hidden
        self._matrix("mlp.gate", count, hidden, self.family.expert_bias)
        if self.name == "ernie4_5_moe":
            self._vector("mlp.gate.e_score_correction_bias", 1, count)
        for name in ("gate_proj", "up_proj") if self.family.gated else ("up_proj",):
            self._vector(f"mlp.experts.{name}", count, width, hidden)
            if self.family.expert_bias:
                self._vector(f"mlp.experts.{name}_bias", count, width)
        self._vector("mlp.experts.down_proj", count, hidden, width)
        if self.family.expert_bias:
            self._vector("mlp.experts.down_proj_bias", count, hidden)
        if self.name == "gemma4":
            self._vector("router.scale", hidden)
            self._vector("router.per_expert_scale", count)
            for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
                self._norm(name)

    # --- Gemma 3n and 4 -----------------------------------------------------------------------

    def _per_layer_width(self) -> int:
        if self.name not in ("gemma3n", "gemma4"):
            return 0
        return self.config.whole("hidden_size_per_layer_input", default=0, least=0)

    def _extras(self) -> None:
        if width := self._per_layer_width():
            self._matrix("per_layer_input_gate", width, self.hidden)
            self._matrix("per_layer_projection", self.hidden, width)
            self._norm("post_per_layer_input_norm")
        if self.name == "gemma3n":
            inputs = self.config.whole("altup_num_inputs", default=4)
            rank = self.config.whole("laurel_rank", default=64)
            self._vector("altup.correct_output_scale", self.hidden)
            self._matrix("altup.correction_coefs", inputs, inputs)
            self._matrix("altup.prediction_coefs", inputs * inputs, inputs)
            self._matrix("altup.modality_router", inputs, self.hidden)
            self._norm("altup.router_norm")
            self._matrix("laurel.linear_left", rank, self.hidden)
            self._matrix("laurel.linear_right", self.hidden, rank)
            self._norm("laurel.post_laurel_norm")

    def _outside(self) -> None:
        """What Gemma 3n and 4 hold outside of the layers, beside embedding and norm."""
        if width := self._per_layer_width():
            rows = self.config.whole("vocab_size_per_layer_input", default=262144, most=keys.MOST_VOCABULARY)
            self._matrix("model.embed_tokens_per_layer", rows, self.layers * width)
            self._matrix("model.per_layer_model_projection", self.layers * width, self.hidden)
            self._norm("model.per_layer_projection_norm", width)
        if self.name == "gemma3n":
            for number in range(self.config.whole("altup_num_inputs", default=4) - 1):
                self._matrix(f"model.altup_projections.{number}", self.hidden, self.hidden)
                self._matrix(f"model.altup_unembed_projections.{number}", self.hidden, self.hidden)

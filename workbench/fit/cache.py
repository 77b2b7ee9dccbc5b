"""What the layers keep between tokens, in bytes, by the rules of each engine."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.exceptions import WorkbenchError
from workbench.fit.architecture import Architecture, LayerCache
from workbench.fit.families import LLAMA_CPP_WINDOWS

TYPES: dict[str, tuple[int, int]] = {
    # name -> (values in a block, bytes of a block, its scales included)
    **{"f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "fp8": (1, 1)},
    **{"q8_0": (32, 34), "q5_1": (32, 24), "q5_0": (32, 22), "q4_1": (32, 20), "q4_0": (32, 18), "iq4_nl": (32, 18)},
}
TYPES_OF = {
    "llama.cpp": tuple(name for name in TYPES if name != "fp8"),
    "transformers": ("f16", "bf16", "f32"),
    "bitsandbytes": ("f16", "bf16", "f32"),
    "vllm": ("f16", "bf16", "f32", "fp8"),
}

CELLS = 256  # llama.cpp rounds a sequence's cells up to this
UBATCH = 512  # tokens it computes at once (its -ub), which a window keeps beside its own
VLLM_BLOCK = 16  # tokens in a block of vLLM
VLLM_STEP = 2048  # tokens vLLM computes at once at least (its max_num_batched_tokens)


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of keys and values, and of fixed-size states, for all sequences."""

    tokens: int
    states: int

    @property
    def total(self) -> int:
        return self.tokens + self.states


def type_names(kv: str | tuple[str, str], engine: str) -> tuple[str, str]:
    """The types of keys and of values, in lower case.

    Raises:
        WorkbenchError: a type that the engine cannot keep them in.
    """
    pair = (kv, kv) if isinstance(kv, str) else tuple(kv)
    if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
        raise WorkbenchError("kv", f"it is {kv!r}", allowed='one type, or two as in ("q8_0", "q4_0")')
    found = tuple(name.lower() for name in pair)
    for name in found:
        if name not in TYPES_OF[engine]:
            raise WorkbenchError(
                "kv", f"{engine} does not keep keys and values as {name!r}", allowed=", ".join(TYPES_OF[engine])
            )
    return found[0], found[1]


def nbytes(
    architecture: Architecture, context: int, batch: int, kv: tuple[str, str], engine: str, *, windows: bool = True
) -> CacheBytes:
    """What `batch` sequences of `context` tokens keep; without `windows`, as if each layer kept every token.

    Raises:
        WorkbenchError: heads that a block type of llama.cpp does not divide.
    """
    if engine == "llama.cpp":
        _check_blocks(architecture, kv)
    each = by_layer(architecture, context, kv, engine, windows=windows)
    return CacheBytes(batch * sum(one.tokens for one in each), batch * sum(one.states for one in each))


def by_layer(
    architecture: Architecture, context: int, kv: tuple[str, str], engine: str, *, windows: bool = True
) -> list[CacheBytes]:
    """What each layer keeps of one sequence."""
    found = []
    for layer in architecture.layers:
        kept = tokens_kept(layer, context, engine, architecture.family) if windows else context
        tokens = kept * (row_bytes(layer.key, kv[0]) + row_bytes(layer.value, kv[1]))
        found.append(CacheBytes(tokens, _state_bytes(layer, kv[0], engine)))
    return found


def tokens_kept(layer: LayerCache, context: int, engine: str, family: str) -> int:
    """For how many tokens a sequence of `context` tokens has room in this layer's cache.

    llama.cpp: src/llama-kv-cache-iswa.cpp. transformers: DynamicSlidingWindowLayer keeps
    window - 1 tokens, and the storage of one more. vLLM: v1/kv_cache_interface.py, where a
    window takes room for the tokens computed at once too, and one block more for its edge.
    """
    if engine == "llama.cpp":
        cells = _rounded(context, CELLS)
        windowed = layer.window and (family.replace("-", "_") in LLAMA_CPP_WINDOWS or family == "olmo2")
        return min(cells, _rounded(layer.window + min(UBATCH, cells), CELLS)) if windowed else cells
    if engine == "vllm":
        if not layer.window:
            return _rounded(context, VLLM_BLOCK)
        return _rounded(min(layer.window - 1 + VLLM_STEP, context), VLLM_BLOCK) + VLLM_BLOCK
    return min(context, layer.window) if layer.window else context


def row_bytes(values: int, type_name: str) -> int:
    """Bytes of one token's keys (or values) of a layer."""
    block, size = TYPES[type_name]
    return -(-values // block) * size


def _state_bytes(layer: LayerCache, type_name: str, engine: str) -> int:
    """A convolution's last inputs and a recurrence's state.

    llama.cpp keeps both in float32, and one input less than the kernel is long. transformers
    and vLLM keep the inputs in the model's type, the recurrence in float32 (vLLM, for
    Mamba: in the model's type, unless told otherwise).
    """
    if engine == "llama.cpp":
        return 4 * (max(0, layer.kernel - 1) * layer.channels + layer.state)
    width = 4 if type_name == "f32" else 2
    kept = layer.kernel if engine in ("transformers", "bitsandbytes") else max(0, layer.kernel - 1)
    return width * kept * layer.channels + 4 * layer.state


def _check_blocks(architecture: Architecture, kv: tuple[str, str]) -> None:
    """Refuse what llama.cpp refuses: heads that are not whole blocks of the type."""
    latent = any(layer.kind == "latent" for layer in architecture.layers)
    for name, what in zip(kv, ("keys", "values"), strict=True):
        block = TYPES[name][0]
        if block > 1 and architecture.head % block and not latent:
            raise WorkbenchError(
                "kv",
                f"{what} as {name} come in blocks of {block}, and this model's heads are {architecture.head} wide",
                allowed="f16, bf16, f32",
                do="keep them as f16",
            )


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step

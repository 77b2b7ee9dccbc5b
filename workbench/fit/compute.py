"""What an engine needs while it computes, beside weights and cache: activations, masks, work space.

The formulas count the tensors that are alive at the worst moment of a pass, in units of
tokens computed at once x width x bytes. They were read off the engines: llama.cpp's own
report of its compute buffer for files of many shapes, and the peak memory of transformers
for models of many shapes (benchmarks/memory.py repeats both).
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.fit.architecture import Architecture
from workbench.fit.cache import CELLS, UBATCH, VLLM_STEP, nbytes, tokens_kept

F32 = 4


@dataclass(frozen=True)
class ComputeBytes:
    """Bytes of activations and work space at the worst moment, and of what the engine keeps for good beside them."""

    peak: int
    fixed: int


def llama_cpp(architecture: Architecture, context: int, batch: int) -> ComputeBytes:
    """llama.cpp computes up to 512 tokens at once, in float32, with flash attention.

    Alive at the worst moment: up, gate and their product (one tensor without a gate), five
    copies of the residual stream (inputs, residual, normed, and what lies between blocks of
    the allocator), the output of the experts where it finds no freed room, and the masks.
    """
    tokens = min(UBATCH, -(-context // CELLS) * CELLS * batch)
    dense = (3 if architecture.gated else 1) * architecture.feed_forward
    routed = architecture.experts_used * architecture.expert_width
    wide = max(dense, (3 if architecture.gated else 1) * routed) + 5 * architecture.hidden
    out_of_experts = architecture.experts_used * architecture.hidden
    if out_of_experts > 2 * routed:
        wide += out_of_experts
    latent = max((layer.key for layer in architecture.layers if layer.kind == "latent"), default=0)
    if latent:  # each head's query is turned to the latent's width, and so is what it attends to
        wide = max(wide, architecture.heads * (2 * latent + architecture.head) + 5 * architecture.hidden)
    channels = max((layer.channels for layer in architecture.layers if layer.state), default=0)
    state = round(5.25 * channels + 4.25 * architecture.hidden) if channels else 0
    masks = 2 * tokens * sum(_mask_cells(architecture, context))
    outputs = F32 * architecture.vocabulary * batch
    return ComputeBytes(F32 * tokens * max(wide, state) + masks, outputs)


def _mask_cells(architecture: Architecture, context: int) -> set[int]:
    """The lengths of llama.cpp's masks: one for layers that see everything, one for those with a window."""
    return {
        tokens_kept(layer, context, "llama.cpp", architecture.family)
        for layer in architecture.layers
        if layer.key or layer.kind == "latent"
    }


@dataclass(frozen=True)
class Machine:
    """What transformers' work depends on beside the model.

    Attributes:
        width: bytes of the float type that it computes in.
        cpu: whether that is a processor.
        flash: whether PyTorch's flash attention works there, in that type.
    """

    width: int
    cpu: bool
    flash: bool


def transformers(
    architecture: Architecture, context: int, batch: int, kv: tuple[str, str], machine: Machine
) -> ComputeBytes:
    """transformers computes the whole prompt at once.

    The worst moment is a layer's feed-forward network, its experts, its attention or its
    state. Masks stay for the whole pass, and layers with a window keep all tokens until the
    first one is generated.
    """
    tokens = context * batch
    layer = max(
        tokens * machine.width * _feed_forward(architecture),
        tokens * machine.width * _experts(architecture),
        tokens * machine.width * _attention(architecture) + _scores(architecture, context, batch, machine),
        tokens * architecture.scan,
    )
    rotary = 2 * F32 * context * architecture.head
    masks = _masks(architecture, context, batch, machine)
    peak = layer + rotary + masks + _held_by_windows(architecture, context, batch, kv)
    return ComputeBytes(peak, F32 * architecture.vocabulary * batch)


def _feed_forward(architecture: Architecture) -> int:
    """Values a token: the gate's activation, up and their product (one more if gate and up are one), and residuals."""
    fused = any(name.endswith("mlp.gate_up_proj.weight") for name in architecture.tensors)
    copies = (4 if fused else 3) if architecture.gated else 2
    return copies * architecture.feed_forward + _residuals(architecture) * architecture.hidden


def _residuals(architecture: Architecture) -> int:
    return 5 if architecture.family.startswith("gemma") else 4  # Gemma norms after the network too


def _experts(architecture: Architecture) -> int:
    """Values a token: what goes to its experts and comes back from them, and what is alive within."""
    if not architecture.experts:
        return 0
    routed = architecture.experts_used * architecture.expert_width
    back = architecture.experts_used * architecture.hidden
    in_float32 = any(layer.kind == "latent" for layer in architecture.layers) or architecture.family == "glm4_moe"
    return max((6 if in_float32 else 4) * back, 4 * routed + back) + 4 * architecture.hidden


def _attention(architecture: Architecture) -> int:
    """Values a token: queries and keys while they are rotated, and the residual stream; the cache is not counted."""
    queries = architecture.heads * architecture.head
    if any(layer.kind == "latent" for layer in architecture.layers):
        return 20 * queries // 3 + 3 * architecture.hidden  # keys and values of every head are made from the latent
    keys = max((layer.key for layer in architecture.layers if layer.kind in ("full", "window")), default=0)
    return max(4 * queries, 2 * queries + 3 * keys) + 3 * architecture.hidden


# Bytes that attention without fused kernels holds for each pair of tokens and head: copies in the model's type, others.
EAGER = {"gemma2": (3, 4), "gpt_oss": (3, 0)}  # soft caps and sinks rule fused kernels out
UNFUSED = 9  # scores and their softmax in float32, and a mask: PyTorch's attention of last resort


def _scores(architecture: Architecture, context: int, batch: int, machine: Machine) -> int:
    """Bytes of the scores of all pairs of tokens, where attention holds them.

    PyTorch's flash attention needs compute capability 8.0 and 16-bit floats. Its other
    fused kernel takes no heads that share keys and values, so without flash attention most
    models fall back to one that holds every score. On a processor there is no other kernel,
    and flash attention wants values as wide as keys, which those from a latent are not; what
    is used instead turns queries, keys and values to float32.
    """
    pairs = context * context * batch * architecture.heads
    if architecture.family in EAGER:
        copies, others = EAGER[architecture.family]
        return pairs * (copies * machine.width + others)
    queries = architecture.heads * architecture.head
    if machine.cpu and any(layer.kind == "latent" for layer in architecture.layers):
        turned = 3 * F32 * queries if machine.width < F32 else 0
        return pairs * UNFUSED + context * batch * turned
    shared = any(layer.kind == "full" and layer.key < queries for layer in architecture.layers)
    return pairs * UNFUSED if shared and not machine.flash else 0


def _masks(architecture: Architecture, context: int, batch: int, machine: Machine) -> int:
    """Bytes of masks: with fused attention a byte for each pair of tokens, if a window is shorter than the context."""
    windows = {layer.window for layer in architecture.layers if 0 < layer.window < context}
    pairs = context * context * batch
    if architecture.family in EAGER:
        return pairs * machine.width * (1 + len(windows))
    return pairs * len(windows)


def _held_by_windows(architecture: Architecture, context: int, batch: int, kv: tuple[str, str]) -> int:
    """Bytes of keys and values that layers with a window hold of a prompt beyond their window."""
    full = nbytes(architecture, context, batch, kv, "transformers", windows=False)
    return full.tokens - nbytes(architecture, context, batch, kv, "transformers").tokens


def bitsandbytes(
    architecture: Architecture,
    context: int,
    batch: int,
    kv: tuple[str, str],
    machine: Machine,
    largest: int,
    *,
    eight: bool,
) -> ComputeBytes:
    """As transformers, and what unpacking a matrix takes; `largest`: weights in the largest one.

    4 bits: a GPU unpacks a matrix for its product; a processor repacks each once, in the
    first pass, through 32-bit integers. 8 bits: sums in 32-bit integers, then in floats.
    """
    plain = transformers(architecture, context, batch, kv, machine)
    width, tokens = machine.width, context * batch
    wide, hidden = architecture.feed_forward, _residuals(architecture) * architecture.hidden
    if eight:
        sums = (16 if machine.cpu else 8) + width
        return ComputeBytes(max(plain.peak, tokens * (sums * wide + width * hidden + architecture.hidden)), plain.fixed)
    if machine.cpu:
        unpacked = 7 * largest + tokens * width * hidden
    else:
        unpacked = width * largest + tokens * width * (2 * wide + hidden)
    return ComputeBytes(max(plain.peak, unpacked), plain.fixed)


def vllm(architecture: Architecture, context: int, batch: int, width: int) -> ComputeBytes:
    """vLLM computes up to 2048 tokens at once; logits of every sequence; an estimate, not measured here."""
    tokens = min(max(VLLM_STEP, batch), context * batch)
    routed = architecture.experts_used * architecture.expert_width
    wide = 3 * max(architecture.feed_forward, routed) + 4 * architecture.hidden
    return ComputeBytes(width * tokens * wide, 2 * F32 * architecture.vocabulary * batch)

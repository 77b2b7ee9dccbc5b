"""What an engine takes for itself, beside weights, cache and buffers: measured, the same for every model."""

from __future__ import annotations

MIB = 1 << 20
CONTEXT = 527 * MIB  # of a CUDA device, for each process that uses it: the driver's context, as read on an H100
DRIVER = {
    # engine -> bytes that it takes on a CUDA device beside its buffers: that context and loaded kernels, as read on
    # an H100 (700 to 760 MiB in PyTorch); older cards take less
    "llama.cpp": 530 * MIB,
    "transformers": 720 * MIB,
    "bitsandbytes": 720 * MIB,
    "vllm": 1500 * MIB,
}
# What a llama.cpp server takes beside its buffers: threads, graphs, work space, and tables for each token.
SERVER = 15_000_000
VOCABULARY_ENTRY = 300
LIBRARIES = 6_000_000  # what PyTorch's libraries for processors keep once they have worked


def overhead(engine: str, kind: str, vocabulary: int) -> int:
    """Bytes for an engine on a kind of device ("cuda", "mps", "cpu"; "": none in particular)."""
    driver = DRIVER[engine] if kind == "cuda" else 0
    if engine == "llama.cpp":
        return SERVER + VOCABULARY_ENTRY * vocabulary + driver
    return driver + (LIBRARIES if kind == "cpu" else 0)

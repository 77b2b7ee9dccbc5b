"""llama.cpp's own logits of a GGUF, and the figures that llama-perplexity makes of such logits.

The library is the one that xllamacpp carries; its C functions are called as its own programs
call them.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np


class _ModelSettings(ctypes.Structure):
    """`llama_model_params`, all of it left as the library fills it in."""

    _fields_ = (("all", ctypes.c_uint64 * 32),)


class _ContextSettings(ctypes.Structure):
    """`llama_context_params`: its first fields, and room for the others."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("context", "batch", "batch_at_once", "sequences")),
        ("others", ctypes.c_uint64 * 64),
    )


class _Batch(ctypes.Structure):
    """`llama_batch`; without positions and sequences it is the next tokens of sequence 0."""

    _fields_ = (
        ("count", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("tokens", "embeddings", "positions", "counts", "sequences", "wanted")),
    )


@cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, *arguments in (
        ("llama_backend_init", None),
        ("llama_model_default_params", _ModelSettings),
        ("llama_context_default_params", _ContextSettings),
        ("llama_model_load_from_file", pointer, ctypes.c_char_p, _ModelSettings),
        ("llama_init_from_model", pointer, pointer, _ContextSettings),
        ("llama_set_n_threads", None, pointer, number, number),
        ("llama_model_get_vocab", pointer, pointer),
        ("llama_vocab_n_tokens", number, pointer),
        ("llama_vocab_get_add_bos", ctypes.c_bool, pointer),
        ("llama_vocab_bos", number, pointer),
        ("llama_tokenize", number, pointer, ctypes.c_char_p, number, pointer, number, ctypes.c_bool, ctypes.c_bool),
        ("llama_get_memory", pointer, pointer),
        ("llama_memory_clear", None, pointer, ctypes.c_bool),
        ("llama_decode", number, pointer, _Batch),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), pointer),
        ("llama_free", None, pointer),
        ("llama_model_free", None, pointer),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_backend_init()
    return library


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    library = _library()
    model = library.llama_model_load_from_file(bytes(path), library.llama_model_default_params())
    assert model
    try:
        yield model
    finally:
        library.llama_model_free(model)


def chunks(path: Path, text: str, context: int) -> np.ndarray:
    """The text as llama-perplexity cuts it: int32 [chunks, context], its own tokenizer's beginning in each."""
    library = _library()
    with _opened(path) as model:
        vocabulary, raw = library.llama_model_get_vocab(model), text.encode()
        room = np.empty(len(raw) + 8, np.int32)
        count = library.llama_tokenize(vocabulary, raw, len(raw), room.ctypes.data, len(room), True, False)
        found = room[: count // context * context].reshape(-1, context)
        if library.llama_vocab_get_add_bos(vocabulary):
            found[:, 0] = library.llama_vocab_bos(vocabulary)
        return found


def logits(path: Path, chunks: np.ndarray) -> np.ndarray:
    """float32 [chunks, context, vocabulary], each chunk read from an empty cache."""
    library = _library()
    settings = library.llama_context_default_params()
    settings.context = settings.batch = settings.batch_at_once = chunks.shape[1]
    wanted = np.ones(chunks.shape[1], np.int8)
    found = []
    with _opened(path) as model:
        width = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        context = library.llama_init_from_model(model, settings)
        assert context
        library.llama_set_n_threads(context, 1, 1)
        for chunk in np.ascontiguousarray(chunks, np.int32):
            library.llama_memory_clear(library.llama_get_memory(context), True)
            batch = _Batch(len(chunk), chunk.ctypes.data, None, None, None, None, wanted.ctypes.data)
            assert library.llama_decode(context, batch) == 0
            values = np.ctypeslib.as_array(library.llama_get_logits(context), (len(chunk), width))
            found.append(values.copy())
        library.llama_free(context)
    return np.stack(found)


def perplexity_figures(base: np.ndarray, other: np.ndarray, chunks: np.ndarray) -> dict[str, float]:
    """What `llama-perplexity --kl-divergence` prints, by its formulas (kl_divergence of perplexity.cpp), in float64.

    The reference's logits are first put through its file of 16 bits each, and terms at or below −16 skipped.
    """
    first, context = chunks.shape[1] // 2, chunks.shape[1]
    following = chunks[:, first + 1 :].ravel()
    scored = [each[:, first : context - 1].reshape(len(following), -1).astype(np.float64) for each in (base, other)]
    log_p, log_q = _through_16_bits(scored[0]), _log_softmax(scored[1])
    kl = np.where(log_p > -16, np.exp(log_p) * (log_p - log_q), 0).sum(1)
    nll_base, nll = (-each[np.arange(len(following)), following] for each in (log_p, log_q))
    delta_p = np.exp(-nll) - np.exp(-nll_base)
    count = len(following)

    def spread(values: np.ndarray) -> float:
        return float(np.sqrt((np.square(values).mean() - values.mean() ** 2) / (count - 1)))

    covariance = ((nll * nll_base).mean() - nll.mean() * nll_base.mean()) / (count - 1)
    ratio = np.exp(nll.mean() - nll_base.mean())
    log_ratio_error = np.sqrt(spread(nll) ** 2 + spread(nll_base) ** 2 - 2 * covariance)
    perplexity, of_base = np.exp(nll.mean()), np.exp(nll_base.mean())
    errors = perplexity * spread(nll), of_base * spread(nll_base)
    difference_error = np.sqrt(errors[0] ** 2 + errors[1] ** 2 - 2 * perplexity * of_base * covariance)
    rms = np.sqrt(np.square(delta_p).mean())
    same = (log_p.argmax(1) == log_q.argmax(1)).mean()
    return {
        **{"PPL(candidate)": perplexity, "PPL(candidate) ±": errors[0]},
        **{"PPL(reference)": of_base, "PPL(reference) ±": errors[1]},
        **{"ln(PPL ratio)": nll.mean() - nll_base.mean(), "ln(PPL ratio) ±": log_ratio_error},
        **{"PPL ratio": ratio, "PPL ratio ±": ratio * log_ratio_error},
        **{"PPL difference": perplexity - of_base, "PPL difference ±": difference_error},
        **{"mean KL": kl.mean(), "mean KL ±": spread(kl), "median KL": np.median(kl), "99 % KL": np.quantile(kl, 0.99)},
        **{"maximum KL": kl.max(), "minimum KL": kl.min(), "5 % KL": np.quantile(kl, 0.05)},
        **{"mean Δp": 100 * delta_p.mean(), "mean Δp ±": 100 * spread(delta_p), "maximum Δp": 100 * delta_p.max()},
        **{"RMS Δp": 100 * rms, "RMS Δp ±": 100 * 0.5 / rms * spread(np.square(delta_p))},
        **{"same top token": 100 * same, "same top token ±": 100 * np.sqrt(same * (1 - same) / (count - 1))},
    }


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _through_16_bits(values: np.ndarray) -> np.ndarray:
    """Log-probabilities as its file of the base's keeps them: 65536 steps from the highest to 16 below at most."""
    log_p = _log_softmax(values)
    low = np.maximum(log_p.min(1, keepdims=True), log_p.max(1, keepdims=True) - 16)
    step = (log_p.max(1, keepdims=True) - low) / 65535
    return low + step * np.clip(np.rint((log_p - low) / step), 0, None)

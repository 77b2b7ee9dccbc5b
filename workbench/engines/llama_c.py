"""llama.cpp's C functions, in the library that xllamacpp carries: scores of the whole vocabulary.

Called in a process of its own alone (`scoring`): a fault in them ends the process. What the C header says of
a structure is not in a wheel, and fields move from version to version. So of each structure only what
the library's own defaults show is used, and what was asked for is looked up afterwards in its log.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from workbench.engines.options import Options
from workbench.exceptions import WorkbenchError, need

POINTER, NUMBER, FLAG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
ALL = 100_000  # layers: so many that it means all
AT_ONCE = 512  # tokens: llama-perplexity's own; the kernels for fewer round otherwise
WARNING, MORE = 3, 5  # levels of llama.cpp's log: from which it is shown, and more of what came before
KEPT_AS = re.compile(r"K \((\w+)\):.*V \((\w+)\):")  # of its log, on the cache


class _Settings(ctypes.Structure):
    """`llama_model_params` or `llama_context_params`, with more room than either has ever had."""

    _fields_ = (("raw", ctypes.c_ubyte * 1024),)


class _Batch(ctypes.Structure):
    """`llama_batch`; without positions and sequences it is the next tokens of sequence 0."""

    _fields_ = (
        ("count", NUMBER),
        *((name, POINTER) for name in ("tokens", "embeddings", "positions", "counts", "sequences", "wanted")),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, POINTER)
_FUNCTIONS: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("llama_log_set", None, (_LOG, POINTER)),
    ("llama_backend_init", None, ()),
    ("llama_model_default_params", _Settings, ()),
    ("llama_context_default_params", _Settings, ()),
    ("llama_model_load_from_file", POINTER, (ctypes.c_char_p, _Settings)),
    ("llama_model_get_vocab", POINTER, (POINTER,)),
    ("llama_vocab_n_tokens", NUMBER, (POINTER,)),
    ("llama_init_from_model", POINTER, (POINTER, _Settings)),
    ("llama_n_ctx", ctypes.c_uint32, (POINTER,)),
    ("llama_set_n_threads", None, (POINTER, NUMBER, NUMBER)),
    ("llama_get_memory", POINTER, (POINTER,)),
    ("llama_memory_clear", None, (POINTER, FLAG)),
    ("llama_batch_init", _Batch, (NUMBER, NUMBER, NUMBER)),
    ("llama_batch_free", None, (_Batch,)),
    ("llama_decode", NUMBER, (POINTER, _Batch)),
    ("llama_get_logits", ctypes.POINTER(ctypes.c_float), (POINTER,)),
)


def library() -> ctypes.CDLL:
    """The library, its functions declared.

    Raises:
        WorkbenchError: this build of xllamacpp does not hand them out.
    """
    found = ctypes.CDLL(str(need("xllamacpp").xllamacpp.__file__))
    for name, result, arguments in _FUNCTIONS:
        try:
            function = getattr(found, name)
        except AttributeError as error:
            raise _unknown(f"it hands out no {name}") from error
        function.restype, function.argtypes = result, arguments
    return found


def _unknown(why: str) -> WorkbenchError:
    version = getattr(need("xllamacpp"), "__version__", "")
    return WorkbenchError(
        f"xllamacpp {version}",
        f"the scores of its llama.cpp cannot be read: {why}",
        do="pip install xllamacpp==2026.10.11549, for which this was written, or compare decoded weights instead",
    )


# --- where fields are ---------------------------------------------------------------------------


def context_fields(defaults: bytes) -> dict[str, int]:
    """Where `llama_context_params` has the fields that are set, from the library's defaults.

    The four sizes come first, and were 512, 2048, 512 and 1 in every version. The types of keys and values, F16
    (1) both, come after the two pointers of one callback and before those of another, all of them null.

    Raises:
        WorkbenchError: the defaults are others.
    """
    if struct.unpack_from("<4I", defaults) != (512, 2048, 512, 1):
        raise _unknown("the defaults of a context are others than those known")
    types = bytes(16) + struct.pack("<2I", 1, 1) + bytes(16)
    places = [at for at in range(16, 256, 8) if defaults[at : at + len(types)] == types]
    if len(places) != 1:
        raise _unknown("the types of keys and values are not where they are known to be")
    return {"context": 0, "batch": 4, "at_once": 8, "keys": places[0] + 16, "values": places[0] + 20}


def model_fields(defaults: bytes) -> dict[str, int]:
    """Where `llama_model_params` has the number of layers for a GPU: after two null pointers, before a 1 (by layer)."""
    if defaults[:16] != bytes(16) or struct.unpack_from("<i", defaults, 20) != (1,):
        raise _unknown("the number of layers for a GPU is not where it is known to be")
    return {"gpu_layers": 16}


def _set(settings: _Settings, at: int, value: int) -> None:
    struct.pack_into("<i", settings.raw, at, value)


# --- a model ------------------------------------------------------------------------------------


class Model:
    """A GGUF with a context, in this process. `width`: the scores of a position, one for each token it knows."""

    def __init__(self, functions: ctypes.CDLL, model: int, context: int, options: Options) -> None:
        self._functions, self._context, self._options = functions, context, options
        self.width = int(functions.llama_vocab_n_tokens(functions.llama_model_get_vocab(model)))

    def scores(self, tokens: np.ndarray, first: int) -> Iterator[np.ndarray]:
        """Scores after each of tokens[first:], float32 [some positions, width], valid until the next are asked for.

        Args:
            tokens: int32 [tokens], a text from its beginning.
        """
        functions, step = self._functions, min(self._options.context, AT_ONCE)
        functions.llama_memory_clear(functions.llama_get_memory(self._context), True)
        wanted = (np.arange(len(tokens)) >= first).astype(np.int8)
        for begin in range(0, len(tokens), step):
            part, asked = (np.ascontiguousarray(each[begin : begin + step]) for each in (tokens, wanted))
            batch = _Batch(len(part), part.ctypes.data, None, None, None, None, asked.ctypes.data)
            if failed := functions.llama_decode(self._context, batch):
                raise WorkbenchError(self._options.path, f"llama.cpp failed to read the tokens (status {failed})")
            if count := int(asked.sum()):
                yield np.ctypeslib.as_array(functions.llama_get_logits(self._context), (count, self.width))


@contextlib.contextmanager
def opened(options: Options) -> Iterator[Model]:
    """The file with a context of `options.context` tokens; what llama.cpp warns of goes to the error stream.

    Raises:
        WorkbenchError: llama.cpp does not open it, or does not say that it did as it was told.
    """
    functions, said = library(), list[str]()
    callback = _LOG(_noting(said))
    functions.llama_log_set(callback, None)
    functions.llama_backend_init()
    _check_batches(functions)
    settings = functions.llama_model_default_params()
    if 0 < options.gpu_layers < ALL:
        _set(settings, model_fields(bytes(settings.raw))["gpu_layers"], options.gpu_layers)
    model = functions.llama_model_load_from_file(options.path.encode(), settings)
    if not model:
        raise WorkbenchError(options.path, "llama.cpp does not open it")
    settings = functions.llama_context_default_params()
    fields, kinds = context_fields(bytes(settings.raw)), need("xllamacpp").ggml_type
    _set(settings, fields["context"], options.context)
    for name in ("batch", "at_once"):
        _set(settings, fields[name], min(options.context, AT_ONCE))
    for name, kind in zip(("keys", "values"), options.kv, strict=True):
        _set(settings, fields[name], int(getattr(kinds, f"GGML_TYPE_{kind.upper()}")))
    context = functions.llama_init_from_model(model, settings)
    if not context:
        raise WorkbenchError(options.path, "llama.cpp does not make a context for it")
    _check_done(functions.llama_n_ctx(context), options, "".join(said))
    functions.llama_set_n_threads(context, options.threads, options.threads)
    yield Model(functions, model, context, options)  # the process ends after it, and with it what it holds


def _noting(said: list[str]) -> Callable[[int, bytes, int], None]:
    shown = False

    def note(level: int, text: bytes, _: int) -> None:
        nonlocal shown
        shown = level >= WARNING if level != MORE else shown
        said.append(text.decode("utf-8", "replace"))
        if shown:
            sys.stderr.write(said[-1])

    return note


def _check_batches(functions: ctypes.CDLL) -> None:
    """Whether a batch is laid out as it is known to be: one for four tokens has them, and no embeddings."""
    batch = functions.llama_batch_init(4, 0, 1)
    others = (batch.tokens, batch.positions, batch.counts, batch.sequences, batch.wanted)
    if batch.count or batch.embeddings or not all(others):
        raise _unknown("a batch is laid out in another way")
    functions.llama_batch_free(batch)


def _check_done(context: int, options: Options, said: str) -> None:
    """Whether the context is as it was asked for. A model without a cache of keys and values says nothing of it."""
    if context < options.context:
        raise _unknown(f"a context of {options.context} tokens was asked for, and it made one of {context}")
    found = {pair for pair in KEPT_AS.findall(said) if pair != ("f16", "f16") or options.kv == pair}
    if found - {options.kv} or (options.kv != ("f16", "f16") and not found):
        kept = " and ".join(sorted("/".join(pair) for pair in found)) or "unknown types"
        raise _unknown(f"keys and values were to be kept in {'/'.join(options.kv)}, and are in {kept}")

"""The engine of ExLlamaV2: EXL2 and GPTQ folders by its own kernels, on an NVIDIA GPU.

ExLlamaV2 computes the scores of the next token and keeps the cache; prompts, samplers, stop strings and text are those
that the engine of transformers has (`tokenwise`), so that the same seed and settings mean the same in both.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench import fit
from workbench.checkpoint import Checkpoint
from workbench.engines import build, exllamav2_library
from workbench.engines.answering import Stopped, check_known
from workbench.engines.base import Can
from workbench.engines.tokenwise import TokenByToken, ends_of
from workbench.exceptions import WorkbenchError, need
from workbench.progress import Progress, Steps, in_thread

CONTEXT = 4096  # tokens, where the model was made for more
DEVICE = "cuda"
CACHES = {  # our name -> its class, and llama.cpp's types of the same bits for keys and values, for the estimate
    "f16": ("ExLlamaV2Cache", ("f16", "f16")),
    "q8": ("ExLlamaV2Cache_Q8", ("q8_0", "q8_0")),
    "q6": ("ExLlamaV2Cache_Q6", ("q8_0", "q4_0")),
    "q4": ("ExLlamaV2Cache_Q4", ("q4_0", "q4_0")),
}


def open_steps(
    checkpoint: Checkpoint, *, context: int | None = None, kv: str | tuple[str, str] | None = None, anyway: bool = False
) -> Steps[ExLlamaV2Engine]:
    """An engine for a folder in EXL2 or GPTQ; the arguments are those of `workbench.run`.

    Args:
        kv: "f16", "q8", "q6" or "q4": ExLlamaV2's own caches.

    Raises:
        WorkbenchError: what this machine lacks, before the library is imported; a model or cache that it does not have.
        DoesNotFit: before any weight is read.
    """
    exllamav2_library.check_model(checkpoint)
    kept, longest = cache_name(kv), context_of(checkpoint, context)
    exllamav2_library.check_here()
    fit.guard.free()
    fit.ask(size_of(checkpoint, longest, kept), f"running {checkpoint.name} in ExLlamaV2", DEVICE, anyway=anyway)
    before = held()
    yield Progress(0, 0, "", "opening ExLlamaV2, which compiles its kernels the first time")
    library = yield from in_thread(lambda _: exllamav2_library.library())
    loaded = yield from in_thread(lambda report: load(library, checkpoint, longest, kept, report))
    return ExLlamaV2Engine(checkpoint, loaded, longest, kept, before)


def cache_name(kv: str | tuple[str, str] | None) -> str:
    """One of `CACHES`; ExLlamaV2 has one type for keys and values together."""
    pair = ("f16",) if kv is None else (kv,) if isinstance(kv, str) else kv
    name = pair[0] if isinstance(pair, tuple) and len(set(pair)) == 1 else None
    if name not in CACHES:
        raise WorkbenchError("kv", f"it is {kv!r:.40}", allowed=", ".join(CACHES) + ", for keys and values together")
    return str(name)


def context_of(checkpoint: Checkpoint, asked: int | None) -> int:
    """Tokens of prompt and reply together, at most what the model was made for."""
    longest = checkpoint.longest_context or CONTEXT
    if asked is None:
        return min(longest, CONTEXT)
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= longest:
        allowed = f"1 to {longest:,} tokens, which the model was made for"
        raise WorkbenchError("context", f"it is {asked!r:.40}", allowed=allowed)
    return asked


def size_of(checkpoint: Checkpoint, context: int, kept: str) -> int:
    """About the bytes on the GPU: the weights as stored, and the cache."""
    try:
        return checkpoint.nbytes + fit.memory(checkpoint, None, context, kv=CACHES[kept][1]).cache
    except WorkbenchError:  # an architecture of which nothing is known
        return checkpoint.nbytes


def held() -> int:
    """Bytes in use of PyTorch's allocator on the GPU."""
    fit.guard.free()
    return int(need("torch").cuda.memory_allocated())


@dataclass
class Loaded:
    """A model in ExLlamaV2: its model and its cache."""

    model: Any
    cache: Any

    def logits(self, ids: list[int], *, last_only: bool, stop: threading.Event | None = None) -> Any:
        """The scores after `ids`, which follow what the cache holds: float32 [tokens, vocabulary] on the CPU."""
        torch = need("torch")
        with torch.inference_mode():
            found = self.model.forward(
                torch.tensor([ids]), self.cache, last_id_only=last_only, abort_event=stop, cpu_logits=not last_only
            )
        if found is None:  # it was asked to stop in the middle
            raise Stopped
        return found[0, :, : self.model.config.vocab_size].float().cpu()  # its head is padded to a multiple of 32

    def begin(self) -> None:
        """Forget what was read."""
        self.cache.current_seq_len = 0


def load(library: Any, checkpoint: Checkpoint, context: int, kept: str, report: Callable[[Progress], None]) -> Loaded:
    """Put a model on the GPU, and its cache beside it."""
    config = library.ExLlamaV2Config(str(checkpoint.path))
    config.max_seq_len = context
    model = library.ExLlamaV2(config)
    cache = getattr(library, CACHES[kept][0])(model, max_seq_len=context, lazy=True)

    def loaded(done: int, total: int) -> None:
        report(Progress(done, total, " modules", f"loading {checkpoint.name}"))

    with fit.guarded(checkpoint.nbytes, f"loading {checkpoint.name}", DEVICE):
        model.load_autosplit(cache, callback=loaded)
    return Loaded(model, cache)


class ExLlamaV2Engine(TokenByToken):
    """A folder that answers in ExLlamaV2; see `engines.base.Engine`. Made by `workbench.run`."""

    can = Can(logits=True, token_ids=True, seed=True)

    def __init__(self, checkpoint: Checkpoint, loaded: Loaded, context: int, kept: str, memory_before: int) -> None:
        what = f"ExLlamaV2's own kernels, context {context:,}, keys and values in {kept}"
        tokenizer = checkpoint.tokenizer
        ends = ends_of(checkpoint, build.config_of(checkpoint), tokenizer)
        super().__init__(f"{checkpoint.name} kv {kept}", what, memory_before, held(), checkpoint, tokenizer, ends)
        self.context, self.kept, self._loaded = context, kept, loaded

    @property
    def where(self) -> str:
        return DEVICE

    @property
    def known(self) -> int:
        return int(self._loaded.model.config.vocab_size)

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        check_known(ids, self.known, self.name)
        self._loaded.begin()
        scores: np.ndarray = self._loaded.logits(ids.tolist(), last_only=False).numpy()
        return scores

    @contextlib.contextmanager
    def _decoding(self, ids: list[int], stop: threading.Event) -> Iterator[Sequence]:
        self._loaded.begin()
        yield Sequence(self._loaded, ids, stop)

    def _free(self) -> None:
        self._loaded.model.unload()
        self._loaded.model = self._loaded.cache = None
        fit.guard.free()


class Sequence:
    """One sequence being continued; see `tokenwise.Continuing`."""

    def __init__(self, loaded: Loaded, ids: list[int], stop: threading.Event) -> None:
        self._loaded, self._new, self._stop = loaded, list(ids), stop

    def logits(self) -> Any:
        if self._stop.is_set():
            raise Stopped
        found = self._loaded.logits(self._new, last_only=True, stop=self._stop)[-1]
        self._new = []
        return found

    def append(self, token: int) -> None:
        self._new.append(token)

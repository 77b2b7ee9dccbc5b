"""The engine of Hugging Face transformers: the original, bitsandbytes' own layers, or any format by decoded weights."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import math
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from workbench import formats
from workbench.checkpoint import Checkpoint
from workbench.engines import build
from workbench.engines.base import Finish, Messages, Reply, Settings, messages_of
from workbench.engines.generate import Decoding, Detokenizer, Stopped, Until, chooser, stoppable
from workbench.engines.template import Prompt, prompt_of
from workbench.exceptions import WorkbenchError, need
from workbench.formats import Format
from workbench.planning import Plan, plan_for
from workbench.progress import Progress, Steps

if TYPE_CHECKING:
    import torch

QUALITY = "the quality of the format, not its speed or its memory"
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")


def open_steps(
    checkpoint: Checkpoint,
    format: str | Format | Plan | Mapping[str, Any] | None = None,
    *,
    decoded: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
) -> Steps[TransformersEngine]:
    """An engine for `checkpoint`; the arguments are those of `workbench.run`."""
    where = build.device_of(device)
    kind = build.dtype_of(dtype, where)
    native = None if decoded else _bitsandbytes_name(format)
    plan, quantization = None, None
    if native is not None:
        quantization = _bitsandbytes_config(native, kind)
    elif format is not None:
        plan = plan_for(checkpoint, format)
    yield Progress(0, 0, "B", "opening the tokenizer")
    tokenizer = checkpoint.tokenizer
    before = memory_held(where)
    model = yield from build.model_of_steps(
        checkpoint, plan, kind, where, importance=importance, quantization=quantization
    )
    if native is not None:
        _mind_odd_shapes(model)
        label, what = native, _what_native(native, model, kind)
    elif plan is not None:
        label, what = plan.name, _what_decoded(checkpoint, plan, kind)
    else:
        label, what = "", _what_original(checkpoint, kind)
    return TransformersEngine(checkpoint, model, tokenizer, f"{checkpoint.name} {label}".rstrip(), what, before)


class TransformersEngine:
    """A transformers model that answers; see `engines.base.Engine`. Made by `workbench.run`."""

    def __init__(
        self, checkpoint: Checkpoint, model: Any, tokenizer: Any, name: str, what: str, memory_before: int
    ) -> None:
        self.name, self.what = name, what
        self.model, self.tokenizer = model, tokenizer
        self.device = model.device
        self.memory_before, self.memory_after = memory_before, memory_held(model.device)
        self.context = _context(model.config)
        self._template = checkpoint.chat_template
        self.ends = _ends(checkpoint, model.config, tokenizer)
        self._guard = threading.Lock()
        self._current: weakref.ref[TransformersStream] | None = None

    def __call__(self, prompt: str | Messages, **settings: Any) -> Reply:
        """Answer a text, or a list of {"role", "content"}; the settings are those of `Settings`."""
        stream = self.stream(prompt, **settings)
        for _ in stream:
            pass
        assert stream.reply is not None
        return stream.reply

    def stream(self, prompt: str | Messages, **settings: Any) -> TransformersStream:
        """Answer piece by piece: iterate for the text, then see `.reply`. Closing it stops the model."""
        chosen = Settings.of(**settings)
        messages = messages_of(prompt, chosen.system)
        with self._guard:
            if self.model is None:
                raise WorkbenchError(self.name, "this engine was closed", do="open it again with workbench.run(...)")
            current = self._current and self._current()
            if current and not current.ended:
                raise WorkbenchError(self.name, "it is still answering", do="call stop(), or close the other stream")
            stream = TransformersStream(self, messages, chosen)
            self._current = weakref.ref(stream)
        return stream

    def stop(self) -> None:
        """End the reply in progress, from any thread, within a second; without one, do nothing."""
        current = self._current and self._current()
        if current:
            current.stop()

    def close(self) -> None:
        """Free the model's memory. The engine cannot be used again; closing twice does no harm."""
        current = self._current and self._current()
        if current:
            current.close()
        with self._guard:
            self.model = self.tokenizer = None
        gc.collect()
        if self.device.type == "cuda":
            need("torch").cuda.empty_cache()
        else:
            _return_free_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        grown = (self.memory_after - self.memory_before) / 1e6
        closed = " (closed)" if self.model is None else ""
        return f"{self.name}{closed}: {self.what}; {grown:,.0f} MB on {self.device}"

    def prompt(self, messages: list[dict[str, str]]) -> tuple[Prompt, list[int]]:
        """The conversation as the model reads it, text and token ids.

        Raises:
            WorkbenchError: the chat template fails, or the prompt leaves no room in the context.
        """
        special = {name: token for name, token in self.tokenizer.special_tokens_map.items() if isinstance(token, str)}
        prompt = prompt_of(self._template, messages, model=self.name, tokens=special)
        ids = self.tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"]
        known = self.model.get_input_embeddings().num_embeddings
        if not ids or max(ids) >= known:
            found = "it is empty" if not ids else f"its tokenizer makes the token {max(ids)}, and it knows {known}"
            raise WorkbenchError(
                self.name, f"the prompt cannot be read: {found}", do="check that the tokenizer is the model's own"
            )
        if self.context is not None and len(ids) >= self.context:
            raise WorkbenchError(
                self.name,
                f"the prompt has {len(ids):,} tokens, and the model's context is {self.context:,}",
                allowed=f"up to {self.context - 1:,} tokens",
                do="shorten the prompt, or leave out the oldest messages",
            )
        return prompt, ids


class TransformersStream:
    """One reply as it is made: an iterator of text, with `reply` once it has ended.

    The pieces join to `reply.text`. May be iterated in one thread and stopped from another.
    """

    def __init__(self, engine: TransformersEngine, messages: list[dict[str, str]], settings: Settings) -> None:
        self._stop = threading.Event()
        self._turn = threading.Lock()  # held while a piece is made
        self._draft = _Draft()
        # No reference back to this object: a stream that a loop has left is collected, and so ended, at once.
        self._pieces = _pieces(engine, messages, settings, self._draft, self._stop)

    @property
    def reply(self) -> Reply | None:
        return self._draft.reply

    @property
    def ended(self) -> bool:
        return self._draft.ended

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._turn:
            return next(self._pieces)

    def stop(self) -> None:
        """Ask for the end and return at once; the thread that iterates comes to its end within a second."""
        self._stop.set()
        if self._turn.acquire(blocking=False):  # nobody is waiting for a piece, so nobody else will end it
            try:
                self._finish()
            finally:
                self._turn.release()

    def close(self) -> None:
        """End the reply and wait until the model has stopped."""
        self._stop.set()
        with self._turn:
            self._finish()

    def _finish(self) -> None:
        self._pieces.close()
        if not self._draft.ended:  # it never began
            self._draft.end()


@dataclass
class _Draft:
    """A reply in the making."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # to make each token, the one that ends the reply included
    prompt_tokens: int = 0
    finish: Finish = "stopped"
    note: str = ""
    ended: bool = False
    reply: Reply | None = None

    def end(self) -> None:
        later = self.seconds[1:]
        left, tokens = len(self.text), []
        for token in self.tokens:  # a stop string, and what was held back for it, belong to no token
            tokens.append(token[:left])
            left -= len(tokens[-1])
        self.ended = True
        self.reply = Reply(
            text=self.text,
            token_ids=tuple(self.ids),
            tokens=tuple(tokens),
            prompt_tokens=self.prompt_tokens,
            seconds_to_first=self.seconds[0] if self.seconds else math.nan,
            tokens_per_second=len(later) / sum(later) if later else math.nan,
            finish=self.finish,
            note=self.note,
        )


def _pieces(
    engine: TransformersEngine,
    messages: list[dict[str, str]],
    settings: Settings,
    draft: _Draft,
    stop: threading.Event,
) -> Generator[str, None, None]:
    """The text of a reply as it is made; keeps the account in `draft`, however it ends."""
    try:
        for text in _write(engine, messages, settings, draft, stop):
            draft.text += text
            yield text
    except Stopped:
        pass
    finally:
        draft.end()


def _write(
    engine: TransformersEngine,
    messages: list[dict[str, str]],
    settings: Settings,
    draft: _Draft,
    stop: threading.Event,
) -> Iterator[str]:
    began = time.perf_counter()
    prompt, ids = engine.prompt(messages)
    draft.note, draft.prompt_tokens = prompt.note, len(ids)
    room = settings.max_tokens if engine.context is None else min(settings.max_tokens, engine.context - len(ids))
    decoding, choose = Decoding(engine.model, ids), chooser(settings)
    detokenizer, until = Detokenizer(engine.tokenizer), Until(settings.stop)
    with stoppable(engine.model, stop):
        while len(draft.ids) < room:
            token = choose(decoding.logits())
            draft.seconds.append(time.perf_counter() - began)
            if token in engine.ends:
                draft.finish = "stop"
                break
            decoding.append(token)
            draft.ids.append(token)
            draft.tokens.append(detokenizer.add(token))
            if text := until.add(draft.tokens[-1]):
                yield text
            if until.found:
                draft.finish = "stop"
                return
            began = time.perf_counter()  # the time in which the reader holds a piece is not the model's
        else:
            draft.finish = "length"
    if rest := detokenizer.rest():
        draft.tokens[-1] += rest
    if text := until.add(rest) + until.rest():
        yield text


# --- which weights ------------------------------------------------------------------------------


def _bitsandbytes_name(format: object) -> str | None:
    """NF4, FP4 or LLM.int8 if that is what was asked for, by name or as a format."""
    if not isinstance(format, str | Format):
        return None
    names = {name.lower(): name for name, known in formats.FORMATS.items() if known.family == "bitsandbytes"}
    return names.get(str(format).lower())


def _bitsandbytes_config(name: str, dtype: torch.dtype) -> Any:
    # It warns of a cast in every layer of every pass, and of an optional kernel from a hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    need("bitsandbytes")
    config = need("transformers").BitsAndBytesConfig
    if name == "LLM.int8":
        return config(load_in_8bit=True)
    return config(load_in_4bit=True, bnb_4bit_quant_type=name.lower(), bnb_4bit_compute_dtype=dtype)


def _mind_odd_shapes(model: Any) -> None:
    """Keep bitsandbytes from a packing for CPUs that fails an assertion on shapes like 96 x 80."""
    layer = need("bitsandbytes").nn.Linear4bit
    for module in model.modules():
        if isinstance(module, layer) and (module.out_features % 32 or module.in_features % 64):
            module.support_avx512bf16_for_cpu = False


def _what_native(name: str, model: Any, dtype: torch.dtype) -> str:
    layers = need("bitsandbytes").nn
    count = sum(isinstance(module, layers.Linear4bit | layers.Linear8bitLt) for module in model.modules())
    return f"bitsandbytes {name} as that library loads it: {count} matrices in its layers, the rest in {_short(dtype)}"


def _what_decoded(checkpoint: Checkpoint, plan: Plan, dtype: torch.dtype) -> str:
    used = Counter(format.name for format in plan.formats.values())
    mix = ", ".join(f"{count} in {name}" for name, count in used.most_common())
    return f"{plan.name} by decoded weights ({mix}), computed in {_short(dtype)}: {QUALITY}"


def _what_original(checkpoint: Checkpoint, dtype: torch.dtype) -> str:
    stored = Counter(info.encoding for info in checkpoint.matrices)
    kinds = " and ".join(stored)
    if set(stored) <= {"F32", "F16", "BF16"}:
        return f"the original weights ({kinds}), computed in {_short(dtype)}"
    return f"the file's own weights ({kinds}), decoded and computed in {_short(dtype)}: {QUALITY}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- what the model's files say -----------------------------------------------------------------


def memory_held(device: torch.device) -> int:
    """Bytes in use: of PyTorch's allocator on a GPU, else of this process."""
    gc.collect()
    if device.type == "cuda":
        return int(need("torch").cuda.memory_allocated(device))
    _return_free_memory()
    return int(need("psutil").Process().memory_info().rss)


def _return_free_memory() -> None:
    """Give the system what the C library keeps for later; on a 100 MB model it can keep twice as much."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def _context(config: Any) -> int | None:
    """The most tokens the model was made for; None: it has no limit."""
    text = config.get_text_config()
    sizes = (getattr(text, name, None) for name in CONTEXT_NAMES)
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def _ends(checkpoint: Checkpoint, config: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a reply: an instruct model often has more than its tokenizer names."""
    said: list[Any] = [getattr(config.get_text_config(), "eos_token_id", None)]
    if checkpoint.kind == "gguf":  # of its tokenizer, some versions of transformers make the end the beginning
        said += [checkpoint.metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    else:
        said += [tokenizer.eos_token_id, _generation_config(checkpoint).get("eos_token_id")]
    listed = [one for value in said for one in (value if isinstance(value, list) else [value])]
    return frozenset(one for one in listed if isinstance(one, int))


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    file = checkpoint.hf_folder() / "generation_config.json"
    try:
        said = json.loads(file.read_bytes()) if file.stat().st_size < 1 << 20 else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}

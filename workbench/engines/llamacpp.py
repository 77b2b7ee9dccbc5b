"""The engine of llama.cpp: a GGUF file in this process, computed as llama.cpp really computes it.

xllamacpp carries llama.cpp ready built. What could end this process stays outside of it: the file is
first opened in a process of its own (`trial`), and its chat template is rendered by `template`, never
by llama.cpp. Prompts are not cached between replies, so that the same question gets the same answer.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from workbench import fit
from workbench.checkpoint import Checkpoint
from workbench.engines import trial
from workbench.engines.answering import Answering, Draft, check_known, feed
from workbench.engines.base import Can, Settings
from workbench.engines.generate import Until
from workbench.engines.options import Options, ask, options_of, server_of
from workbench.engines.scoring import Scorer
from workbench.engines.template import by_name, prompt_of, special_tokens
from workbench.exceptions import WorkbenchError, need
from workbench.progress import Progress, Steps, in_thread

SEEDS = 2**32 - 1  # llama.cpp takes 32 bits, and the last number for "any"


def open_steps(
    checkpoint: Checkpoint,
    *,
    context: int | None = None,
    kv: str | tuple[str, str] | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    anyway: bool = False,
) -> Steps[LlamaCppEngine]:
    """An engine for a GGUF `checkpoint`; the arguments are those of `workbench.run`."""
    need("xllamacpp")
    options = options_of(checkpoint, context, kv, threads, gpu_layers)
    fit.guard.free()
    ask(checkpoint, options, f"running {checkpoint.name}", anyway=anyway)
    yield from trial.open_steps(checkpoint.name, options)
    before = resident()
    yield Progress(0, 0, "", "opening the model")
    server = yield from in_thread(lambda _: server_of(options, key=secrets.token_urlsafe()))
    return LlamaCppEngine(checkpoint, server, options, before)


def resident() -> int:
    """Bytes of main memory that this process holds."""
    fit.guard.free()
    return int(need("psutil").Process().memory_info().rss)


class LlamaCppEngine(Answering):
    """A GGUF that answers in llama.cpp; see `engines.base.Engine`. Made by `workbench.run`."""

    can = Can(logits=True, seed=True)

    def __init__(self, checkpoint: Checkpoint, server: Any, options: Options, memory_before: int) -> None:
        kept = f"keys and values in {' and '.join(dict.fromkeys(options.kv))}"
        what = f"the file as llama.cpp computes it, context {options.context:,}, {kept}, {options.threads} threads"
        super().__init__(checkpoint.name, what, memory_before, resident())
        self.checkpoint, self.options, self.context = checkpoint, options, options.context
        self._server = server
        self._template = checkpoint.chat_template
        self._special = special_tokens(checkpoint)
        self._spaced = checkpoint.metadata.get("tokenizer.ggml.model") == "llama"
        self._threads: list[threading.Thread] = []

    @property
    def where(self) -> str:
        return "cpu" if not self.options.gpu_layers else "cpu, beside what the GPU holds"

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        scorer = Scorer(self.name, self.options, len(ids))  # which opens the file anew
        try:
            check_known(ids, scorer.width, self.name)
            scorer.begin(ids, 0)
            return scorer.rows(len(ids))
        finally:
            scorer.close()

    def _free(self) -> None:
        for thread in self._threads:  # llama.cpp ends its batch before it lets go
            thread.join()
        self._server = None
        fit.guard.free()

    def _prompt(self, text: str) -> str | list[int | str]:
        """The text for llama.cpp, which begins it with the token that begins a text: here, never with two of them."""
        number, written = self._special.get("bos", (0, ""))
        return [number, text.removeprefix(written)] if written and text.startswith(written) else text

    def _write(
        self, messages: list[dict[str, str]], settings: Settings, draft: Draft, stop: threading.Event
    ) -> Iterator[str]:
        began = time.perf_counter()
        prompt = prompt_of(self._template, messages, model=self.name, tokens=by_name(self._special))
        if not prompt.text:
            raise WorkbenchError(self.name, "the prompt is empty", do="pass a text")
        draft.note = prompt.note
        until, spaced = Until(settings.stop), self._spaced
        for event, now in self._events(_request(self._prompt(prompt.text), settings), stop):
            made = _read(event, draft, self.name, self.context)
            if made is None:
                continue
            count, text = made
            if count:  # several, when they are a character together
                draft.seconds += [now - began, *[0.0] * (count - 1)]
                began = now
            if spaced and text:  # a tokenizer of this kind writes a space before the first word
                text, spaced = text.removeprefix(" "), False
            draft.tokens += [""] * count
            if draft.tokens:
                draft.tokens[-1] += text
            if text := until.add(text):
                yield text
            if until.found:
                draft.finish = "stop"
                return
        if draft.finish == "stop" and draft.tokens and not draft.tokens[-1]:
            draft.tokens.pop()  # the token that ended the reply
        if text := until.rest():
            yield text

    def _events(self, request: dict[str, Any], stop: threading.Event) -> Iterator[tuple[dict[str, Any], float]]:
        """What llama.cpp reports of a reply, and when."""
        server = self._server
        try:
            yield from feed(lambda take: server.handle_completions(request, take), stop, self._threads)
        except (ValueError, RuntimeError) as error:
            raise WorkbenchError(self.name, f"llama.cpp refused the question: {error!s:.300}") from error


def _request(prompt: str | list[int | str], settings: Settings) -> dict[str, Any]:
    """A reply with these settings, in the order of samplers that transformers has, and no other sampler."""
    return {
        "prompt": prompt,
        "stream": True,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "seed": settings.seed % SEEDS,
        "samplers": ["temperature", "top_k", "top_p"],
        "cache_prompt": False,
        "timings_per_token": True,
        "return_progress": True,
        "stream_options": {"include_usage": True},
    }


def _read(event: dict[str, Any], draft: Draft, name: str, context: int) -> tuple[int, str] | None:
    """(how many tokens are new, the text they complete) of a report, the rest noted in `draft`; None: nothing new."""
    if "error" in event:
        raise _refusal(event["error"], name, context)
    timings = event.get("timings") or {}
    draft.prompt_tokens = timings.get("prompt_n") or draft.prompt_tokens
    if timings.get("predicted_n"):
        draft.prompt_per_second = timings["prompt_per_second"]
    if not event["choices"]:
        return None
    choice = event["choices"][0]
    if choice["finish_reason"]:
        draft.finish = "stop" if choice["finish_reason"] == "stop" else "length"
    count = max(0, timings.get("predicted_n", 0) - len(draft.tokens))
    return (count, choice["text"]) if count or choice["text"] else None


def _refusal(error: dict[str, Any], name: str, context: int) -> WorkbenchError:
    if error.get("type") != "exceed_context_size_error":
        return WorkbenchError(name, f"llama.cpp refused the question: {error.get('message')!s:.300}")
    return WorkbenchError(
        name,
        f"the prompt has {error['n_prompt_tokens']:,} tokens, and the context is {context:,}",
        allowed=f"up to {context - 1:,} tokens",
        do="shorten the prompt, leave out the oldest messages, or run the file with a larger context=",
    )

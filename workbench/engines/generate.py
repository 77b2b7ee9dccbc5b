"""Tokens out of a transformers model, one at a time, and the text they make.

An own loop, a few lines longer than `model.generate`, because a panel needs what that does
not give: a plain iterator that can be closed, a stop that takes effect inside a forward
pass, and sampling from a generator of its own, so that a seed repeats a reply without
touching the random state of the notebook.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

from workbench.engines.answering import Stopped
from workbench.engines.base import Settings
from workbench.exceptions import need

BROKEN = "\ufffd"  # what a decoder writes for the bytes of half a character


@contextlib.contextmanager
def stoppable(model: Any, stop: threading.Event) -> Iterator[None]:
    """While this is open, setting `stop` ends a forward pass of `model` at its next module."""

    def look(module: Any, inputs: tuple) -> None:
        if stop.is_set():
            raise Stopped

    hooks = [module.register_forward_pre_hook(look) for module in model.modules() if not list(module.children())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Decoding:
    """One sequence being continued: holds the model's cache between steps.

    Args:
        cache: what the first forward pass is given beside the tokens, such as a cache of another kind.
    """

    def __init__(self, model: Any, token_ids: Sequence[int], cache: Mapping[str, Any] | None = None) -> None:
        self.model, self.ids = model, list(token_ids)
        self.cache: dict[str, Any] = {"use_cache": True, **(cache or {})}
        self.cached = 0  # how many of the tokens the cache holds
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}

    def logits(self) -> Any:
        """The scores of every token to come next, float32 [vocabulary] on the CPU."""
        torch = need("torch")
        with torch.inference_mode():
            ids = torch.tensor([self.ids[self.cached :]], device=self.model.device)
            output = self.model(input_ids=ids, return_dict=True, **self.last_only, **self.cache)
            if getattr(output, "past_key_values", None) is not None:  # without one, all is read again for each token
                self.cache["past_key_values"], self.cached = output.past_key_values, len(self.ids)
            return output.logits[0, -1].float().cpu()

    def append(self, token: int) -> None:
        self.ids.append(token)


def chooser(settings: Settings) -> Callable[[Any], int]:
    """The function that picks the next token from logits [vocabulary], by the settings of this reply."""
    torch, transformers = need("torch"), need("transformers")
    if settings.temperature == 0:
        return lambda logits: int(logits.argmax())
    narrow = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(float(settings.temperature))])
    if settings.top_k:
        narrow.append(transformers.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        narrow.append(transformers.TopPLogitsWarper(float(settings.top_p)))
    random = torch.Generator().manual_seed(settings.seed)

    def choose(logits: Any) -> int:
        chances = torch.softmax(narrow(torch.empty(1, 0, dtype=torch.long), logits[None]), dim=-1)
        return int(torch.multinomial(chances, 1, generator=random))

    return choose


class Detokenizer:
    """The text of tokens as they come: each piece is whole characters, and the pieces join to the text.

    A tokenizer cannot decode tokens one by one (a character may span several; the first
    word's space depends on what came before), so a short window is decoded twice and the
    difference is what is new. What ends in half a character waits for the rest of it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start, self.shown = 0, 0  # the window, and how much of its text was given out

    def add(self, token: int) -> str:
        """The text this token completes; "" while a character is still open."""
        self.ids.append(token)
        text = self._text(self.start)
        whole = text.rstrip(BROKEN)
        piece, self.shown = whole[self.shown :], max(self.shown, len(whole))
        if whole == text and len(self.ids) - self.start > 8:
            # move the window on, keeping a few tokens before it for their effect on spaces
            self.start = len(self.ids) - 4
            self.shown = len(self._text(self.start))
        return piece

    def rest(self) -> str:
        """What was held back and will not be completed."""
        text = self._text(self.start)
        piece, self.shown = text[self.shown :], len(text)
        return piece

    def _text(self, start: int) -> str:
        return self.tokenizer.decode(self.ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Until:
    """Lets text through up to the first of the stop strings, holding back what may be the start of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.held, self.found = "", False

    def add(self, piece: str) -> str:
        text = self.held + piece
        places = [place for place in map(text.find, self.stop) if place >= 0]
        if places:
            self.held, self.found = "", True
            return text[: min(places)]
        keep = max((self._overlap(text, one) for one in self.stop), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back, at the end of a reply in which no stop string came."""
        held, self.held = self.held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """The length of the longest end of `text` that `stop` begins with."""
        return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)

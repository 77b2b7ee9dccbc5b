"""Engines that choose token by token here: the prompt, the samplers, stop strings and the text are theirs in common."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from workbench.checkpoint import Checkpoint
from workbench.engines.answering import Answering, Draft
from workbench.engines.base import Settings
from workbench.engines.generate import Detokenizer, Until, chooser
from workbench.engines.template import Prompt, prompt_of
from workbench.exceptions import WorkbenchError


class Continuing(Protocol):
    """One sequence being continued."""

    def logits(self) -> Any:
        """The scores of every token to come next, float32 [vocabulary] on the CPU."""

    def append(self, token: int) -> None: ...


class TokenByToken(Answering):
    """The part of an engine that does not depend on what computes the scores of the next token.

    Attributes:
        ends: the tokens that end a reply.
    """

    def __init__(
        self,
        name: str,
        what: str,
        memory_before: int,
        memory_after: int,
        checkpoint: Checkpoint,
        tokenizer: Any,
        ends: frozenset[int],
    ) -> None:
        super().__init__(name, what, memory_before, memory_after)
        self.checkpoint, self.tokenizer, self.ends = checkpoint, tokenizer, ends
        self._template = checkpoint.chat_template

    @property
    @abstractmethod
    def known(self) -> int:
        """How many tokens the model knows."""

    @abstractmethod
    def _decoding(self, ids: list[int], stop: threading.Event) -> AbstractContextManager[Continuing]:
        """A sequence that begins with `ids`; once `stop` is set it ends soon, by `Stopped` where it can."""

    def _guarded(self, ids: list[int], draft: Draft) -> AbstractContextManager[None]:
        """What stands around a reply to `ids`: it may ask for memory first."""
        return contextlib.nullcontext()

    def prompt(self, messages: list[dict[str, str]]) -> tuple[Prompt, list[int]]:
        """The conversation as the model reads it, text and token ids.

        Raises:
            WorkbenchError: the chat template fails, or the prompt leaves no room in the context.
        """
        special = {name: token for name, token in self.tokenizer.special_tokens_map.items() if isinstance(token, str)}
        prompt = prompt_of(self._template, messages, model=self.name, tokens=special)
        ids = self.tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"]
        if not ids or max(ids) >= self.known:
            found = "it is empty" if not ids else f"its tokenizer makes the token {max(ids)}, and it knows {self.known}"
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

    def _write(
        self, messages: list[dict[str, str]], settings: Settings, draft: Draft, stop: threading.Event
    ) -> Iterator[str]:
        began = time.perf_counter()
        prompt, ids = self.prompt(messages)
        draft.note, draft.prompt_tokens = prompt.note, len(ids)
        with self._guarded(ids, draft):
            yield from self._tokens(ids, settings, draft, stop, began)

    def _tokens(
        self, ids: list[int], settings: Settings, draft: Draft, stop: threading.Event, began: float
    ) -> Iterator[str]:
        most = settings.max_tokens if self.context is None else min(settings.max_tokens, self.context - len(ids))
        choose, detokenizer, until = chooser(settings), Detokenizer(self.tokenizer), Until(settings.stop)
        with self._decoding(ids, stop) as decoding:
            reading = time.perf_counter()
            while len(draft.ids) < most:
                token = choose(decoding.logits())
                now = time.perf_counter()
                if not draft.seconds:
                    draft.prompt_per_second = len(ids) / (now - reading)
                draft.seconds.append(now - began)
                if token in self.ends:
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


def ends_of(checkpoint: Checkpoint, config: Any, tokenizer: Any) -> frozenset[int]:
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

"""Multiple choice by log-likelihood: which choice a model would most likely give as its reply.

    log p(choice | prompt) = Σ_t log p(token t of the choice | prompt, the tokens before it),   in nats,

the whole sum, without a correction for length: choices of very different lengths are better asked for
by letter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from workbench.engines import Engine
from workbench.engines.generate import stoppable
from workbench.engines.template import Prompt, prompt_of
from workbench.engines.transformers import TransformersEngine
from workbench.exceptions import need
from workbench.measure.forward import Predictor
from workbench.measure.running import running
from workbench.progress import drain

if TYPE_CHECKING:
    import torch


class Likelihoods:
    """Log-likelihoods of replies from an engine that gives logits; made in one thread, stopped from any."""

    def __init__(self, engine: Engine, stop: threading.Event) -> None:
        self.engine, self.stop = engine, stop
        self._predictor: Predictor | None = None

    def of(self, messages: list[dict[str, str]], choices: Sequence[str]) -> tuple[list[float], int, str]:
        """(log p of each choice as the reply in nats, tokens of the prompt, a note on the prompt)."""
        engine: Any = self.engine
        if isinstance(engine, TransformersEngine):
            tokenizer, (prompt, ids) = engine.tokenizer, engine.prompt(messages)
            rows = [_continuation(tokenizer, prompt, ids, choice) for choice in choices]
            return self._at_once(ids, rows), len(ids), prompt.note
        tokenizer = engine.checkpoint.tokenizer
        special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        prompt = prompt_of(engine.checkpoint.chat_template, messages, model=engine.name, tokens=special)
        ids = tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"]
        rows = [_continuation(tokenizer, prompt, ids, choice) for choice in choices]
        return [self._alone(ids, row) for row in rows], len(ids), prompt.note

    def close(self) -> None:
        """Let go of what was opened for it."""
        predictor, self._predictor = self._predictor, None
        if predictor is not None:
            predictor.close()

    def _at_once(self, ids: list[int], rows: list[list[int]]) -> list[float]:
        """All choices in one pass of a model of transformers."""
        torch, model = need("torch"), self.engine.model  # type: ignore[attr-defined]
        longest = max(len(row) for row in rows)
        padded = torch.tensor([[*ids, *row, *[0] * (longest - len(row))] for row in rows], device=model.device)
        kept = longest + 1  # positions from the prompt's last: what pads a row comes after all that is read of it
        narrow = {"logits_to_keep": kept} if "logits_to_keep" in signature(model.forward).parameters else {}
        with torch.inference_mode(), stoppable(model, self.stop):
            logits = model(input_ids=padded, use_cache=False, **narrow).logits[:, -kept:]
        return [_sum(logits[number, : len(row)], row) for number, row in enumerate(rows)]

    def _alone(self, ids: list[int], row: list[int]) -> float:
        """One choice in another engine, by what `wb.compare` reads of it."""
        torch = need("torch")
        if self._predictor is None:
            tick: Callable[[], None] = lambda: None  # noqa: E731
            self._predictor = drain(running(self.engine).open_steps(self._longest, tick, streamed=False))
        (rows,) = self._predictor.read(torch.tensor([[*ids, *row]]), slice(len(ids) - 1, len(ids) + len(row) - 1))
        return _sum(rows(slice(0, len(row))), row)

    @property
    def _longest(self) -> int:
        return int(getattr(self.engine, "context", None) or 4096)


def _sum(logits: torch.Tensor, row: list[int]) -> float:
    """Σ log p of the tokens of `row` by logits [tokens, vocabulary]."""
    torch = need("torch")
    log_p = logits.float().log_softmax(-1).cpu()
    return float(log_p.gather(-1, torch.tensor(row)[:, None]).sum())


def _continuation(tokenizer: Any, prompt: Prompt, ids: list[int], choice: str) -> list[int]:
    """The tokens of a choice after the prompt."""
    if prompt.templated:
        return tokenizer(choice, add_special_tokens=False)["input_ids"]
    between = "" if prompt.text[-1:].isspace() else " "
    joined = tokenizer(prompt.text + between + choice)["input_ids"]
    if joined[: len(ids)] == ids:
        return joined[len(ids) :]
    return tokenizer(between + choice, add_special_tokens=False)["input_ids"]

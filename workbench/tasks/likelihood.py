"""Multiple choice by log-likelihood: which choice a model would most likely give as its reply.

    log p(choice | prompt) = Σ_t log p(token t of the choice | prompt, the tokens before it),   in nats,

the whole sum, without a correction for length: choices of very different lengths are better asked for
by letter.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from workbench.engines import Engine, Reply
from workbench.engines.generate import stoppable
from workbench.exceptions import need
from workbench.tasks.asking import Question, Said

if TYPE_CHECKING:
    from workbench.engines.transformers import TransformersEngine


def chosen(engine: Engine, question: Question, began: float, stop: threading.Event | None = None) -> Said:
    """The likeliest choice as the reply, and the log-likelihood of each."""
    scores, prompt_tokens, note = likelihoods(engine, question.messages_with_system, question.example.choices, stop)
    text = question.example.choices[max(range(len(scores)), key=scores.__getitem__)]
    nothing = math.nan
    reply = Reply(text, (), (text,), prompt_tokens, time.perf_counter() - began, nothing, "stop", note)
    return Said(reply, tuple(scores))


def likelihoods(
    engine: Any, messages: list[dict[str, str]], choices: Sequence[str], stop: threading.Event | None = None
) -> tuple[list[float], int, str]:
    """(log p of each choice as the reply in nats, tokens of the prompt, a note) from an engine that gives logits."""
    torch = need("torch")
    prompt, ids = engine.prompt(messages)
    rows = [_continuation(engine, prompt, ids, choice) for choice in choices]
    longest = max(len(row) for row in rows)
    padded = torch.tensor([[*ids, *row, *[0] * (longest - len(row))] for row in rows], device=engine.model.device)
    kept = longest + 1  # positions from the prompt's last: what pads a row comes after all that is read of it
    narrow = {"logits_to_keep": kept} if "logits_to_keep" in signature(engine.model.forward).parameters else {}
    with torch.inference_mode(), stoppable(engine.model, stop or threading.Event()):
        logits = engine.model(input_ids=padded, use_cache=False, **narrow).logits[:, -kept:].float()
    log_p = logits.log_softmax(-1).cpu()
    scores = [float(sum(log_p[number, at, token] for at, token in enumerate(row))) for number, row in enumerate(rows)]
    return scores, len(ids), prompt.note


def _continuation(engine: TransformersEngine, prompt: Any, ids: list[int], choice: str) -> list[int]:
    """The tokens of a choice after the prompt."""
    if prompt.templated:
        return engine.tokenizer(choice, add_special_tokens=False)["input_ids"]
    between = "" if prompt.text[-1:].isspace() else " "
    joined = engine.tokenizer(prompt.text + between + choice)["input_ids"]
    if joined[: len(ids)] == ids:
        return joined[len(ids) :]
    return engine.tokenizer(between + choice, add_special_tokens=False)["input_ids"]

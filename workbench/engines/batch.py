"""Many questions to one transformers model at once: each weight is read once for a token of every reply.

Prompts are padded on the left and hidden there by the attention mask; a reply that has ended leaves the batch. The
replies are those of the questions asked alone, but for the rounding of sums in another order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

from workbench.engines import room
from workbench.engines.base import Finish, Reply, Settings
from workbench.engines.generate import Detokenizer, Until, chooser, stoppable
from workbench.engines.template import Prompt
from workbench.engines.transformers import TransformersEngine
from workbench.exceptions import need

PADDING = 0  # any token: it is hidden


def batches(engine: TransformersEngine) -> bool:
    """Whether its model can hide padding: one that keeps a state instead of keys and values cannot."""
    known = signature(engine.model.forward).parameters
    return not getattr(engine.model, "_is_stateful", False) and {"attention_mask", "position_ids"} <= set(known)


def fitting(engine: TransformersEngine, tokens: int, most: int) -> int:
    """How many replies of so many tokens, prompt included, fit in memory at once: 1 to `most`."""
    if engine.needs is None or engine.anyway:
        return most
    usable, held = room.here(engine.device).usable, engine.needs
    while most > 1:
        there = held.at(context=tokens, batch=most)
        if there.cache + there.parts["compute"] <= usable:
            return most
        most //= 2
    return 1


@dataclass
class _Line:
    """One reply in the making."""

    prompt: Prompt
    ids: list[int]
    settings: Settings
    most: int
    detokenizer: Detokenizer
    until: Until
    choose: Callable[[Any], int]
    made: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    text: str = ""
    finish: Finish = "length"
    first: float = 0.0

    def take(self, token: int, ends: frozenset[int]) -> bool:
        """Add a token; whether the reply goes on."""
        if token in ends:
            self.finish = "stop"
            return False
        self.made.append(token)
        self.tokens.append(self.detokenizer.add(token))
        self.text += self.until.add(self.tokens[-1])
        if self.until.found:
            self.finish = "stop"
            return False
        return len(self.made) < self.most

    def end(self) -> None:
        if self.until.found:
            left = len(self.text)
            for place, token in enumerate(self.tokens):  # the stop string belongs to no token
                self.tokens[place] = token[:left]
                left -= len(self.tokens[place])
            return
        if self.tokens and (rest := self.detokenizer.rest()):
            self.tokens[-1] += rest
            self.text += self.until.add(rest)
        self.text += self.until.rest()


def replies(
    engine: TransformersEngine,
    prompts: Sequence[tuple[Prompt, list[int]]],
    settings: Sequence[Settings],
    stop: threading.Event,
    tick: Callable[[], None] = lambda: None,
) -> list[Reply]:
    """A reply to each prompt, all made at once.

    Args:
        prompts: what `engine.prompt` gives for each conversation.
        settings: of each reply.
        stop: once set, `answering.Stopped` is raised within a forward pass.
        tick: called after each token.

    Each reply's speed is that of the batch: the tokens of all replies in the time of all.
    """
    torch = need("torch")
    lines = [
        _Line(
            prompt,
            ids,
            one,
            one.max_tokens if engine.context is None else min(one.max_tokens, engine.context - len(ids)),
            Detokenizer(engine.tokenizer),
            Until(one.stop),
            chooser(one),
        )
        for (prompt, ids), one in zip(prompts, settings, strict=True)
    ]
    began = time.perf_counter()
    with torch.inference_mode(), stoppable(engine.model, stop):
        seconds, count = _run(engine, lines, tick, began)
    rate = count / seconds if seconds > 0 and count else float("nan")
    read = sum(len(line.ids) for line in lines) / max(lines[0].first, 1e-9)
    made = []
    for line in lines:
        line.end()
        reply = Reply(
            text=line.text,
            token_ids=tuple(line.made),
            tokens=tuple(line.tokens),
            prompt_tokens=len(line.ids),
            seconds_to_first=line.first,
            tokens_per_second=rate if len(line.made) > 1 else float("nan"),
            finish=line.finish,
            note=line.prompt.note,
            prompt_per_second=read,
        )
        made.append(replace(reply, note="; ".join(filter(None, [reply.note, _note(len(lines))]))))
    return made


def _note(count: int) -> str:
    return f"one of {count} replies made at once, whose speed it is" if count > 1 else ""


def _run(engine: TransformersEngine, lines: list[_Line], tick: Callable[[], None], began: float) -> tuple[float, int]:
    """Fill the lines; (the seconds after the first token, the tokens made in them)."""
    torch = need("torch")
    model, device = engine.model, engine.device
    longest = max(len(line.ids) for line in lines)
    ids = torch.tensor([[PADDING] * (longest - len(line.ids)) + line.ids for line in lines], device=device)
    mask = torch.tensor([[0] * (longest - len(line.ids)) + [1] * len(line.ids) for line in lines], device=device)
    narrow = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    running, cache, count, since = list(lines), None, 0, began
    while running:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **narrow,
        )
        cache = output.past_key_values
        tokens = _chosen(output.logits[:, -1], running)
        tick()
        if count == 0:
            since = time.perf_counter()
            for line in running:
                line.first = since - began
        stay = [
            place
            for place, (line, token) in enumerate(zip(running, tokens, strict=True))
            if line.take(token, engine.ends)
        ]
        count += len(running)
        if len(stay) < len(running):
            running, tokens = [running[place] for place in stay], [tokens[place] for place in stay]
            kept = torch.tensor(stay, dtype=torch.long, device=device)
            mask, positions = mask[kept], positions[kept]
            if stay:
                cache.batch_select_indices(kept)
        ids = torch.tensor(tokens, device=device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return time.perf_counter() - since, count - len(lines)


def _chosen(logits: Any, running: Sequence[_Line]) -> list[int]:
    """The next token of each line."""
    if all(line.settings.temperature == 0 for line in running):
        return list(logits.float().argmax(-1).tolist())
    each = logits.float().cpu()
    return [line.choose(each[place]) for place, line in enumerate(running)]

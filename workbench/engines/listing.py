"""The likeliest next tokens, as servers list them: OpenAI's older shape, which vLLM has too, and llama-server's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BEYOND = 1e-3  # what rounding may add to probabilities that sum to 1; more is none


@dataclass(frozen=True)
class Listed:
    """A token of a list: its text, the natural logarithm of its probability, and its number where that is told."""

    text: str
    log_p: float
    number: int | None = None


@dataclass(frozen=True)
class Listing:
    """What a server lists after a text.

    Attributes:
        tokens: the likeliest first; empty: it lists none.
        prompt_tokens: as how many tokens it read the text, its own beginning included; 0: it does not tell.
    """

    tokens: tuple[Listed, ...]
    prompt_tokens: int


def read(answer: str) -> Listing:
    """The list in the JSON of an answer to one token's completion.

    Raises:
        ValueError, TypeError, LookupError: it is none of OpenAI's protocol.
    """
    try:
        body = json.loads(answer)
        said = body["choices"][0].get("logprobs")
        found = sorted(_tokens(said), key=lambda each: -each.log_p) if said else []
    except (RecursionError, OverflowError):
        raise ValueError("numbers or brackets beyond reason") from None
    if sum(math.exp(each.log_p) for each in found) > 1 + BEYOND:
        raise ValueError("probabilities that sum to more than 1")
    read = (body.get("usage") or {}).get("prompt_tokens")
    return Listing(tuple(found), read if isinstance(read, int) and read > 0 else 0)


def _tokens(said: dict[str, Any]) -> Iterator[Listed]:
    if said.get("content"):
        for entry in said["content"][0].get("top_logprobs") or ():
            number = entry.get("id")
            yield _listed(entry["token"], entry["logprob"], number if isinstance(number, int) else None)
    elif said.get("top_logprobs"):
        for text, log_p in (said["top_logprobs"][0] or {}).items():
            yield _listed(text, log_p)


def _listed(text: object, log_p: object, number: int | None = None) -> Listed:
    if not isinstance(text, str) or isinstance(log_p, bool) or not isinstance(log_p, int | float) or math.isnan(log_p):
        raise TypeError(f"a token {text!r:.40} of {log_p!r:.40}")
    if log_p > BEYOND:
        raise ValueError("a probability above 1")
    return Listed(text, min(float(log_p), 0.0), number)
